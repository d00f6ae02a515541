"""The record of a run: rows while it trains, a result at its end, an outcome for its curve.

``COLUMNS`` is the one registry of everything that is recorded about a run. The ledger, tables of runs, MLflow, the HTTP
service and docs/formats.md take their columns from it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

State = Literal["planned", "running", "finished", "diverged", "crashed", "pruned"]
STATES: tuple[State, ...] = get_args(State)
TERMINAL: frozenset[State] = frozenset({"finished", "diverged", "crashed", "pruned"})
EndState = Literal["finished", "diverged", "crashed", "pruned", "stopped"]
"""How ``Trainer.run`` can end: in a terminal state, or ``stopped`` with a checkpoint to resume from."""
Origin = Literal["grid", "refine", "edge"]
"""Why a cell was planned: the study's grid, a proposal of Optuna, the search for an edge."""

Kind = Literal["text", "integer", "number"]
Source = Literal["ledger", "cell", "result", "metrics"]
Place = Literal["mlflow", "http", "event"]


@dataclass(frozen=True)
class Column:
    """One column of a table of runs."""

    name: str
    kind: Kind
    source: Source
    """Where the value comes from: the ledger's line, the cell, its result, or the last row of its metrics."""
    meaning: str
    unit: str = ""
    shown: frozenset[Place] = frozenset()
    """Where it is shown besides the ledger and tables of runs: as a metric or tag of MLflow, in the service's list of
    cells, in its event stream."""
    mlflow_key: str | None = None
    """Its key among MLflow's metrics, if not ``name``: the curve of that name holds the values along the run."""


_MLFLOW: frozenset[Place] = frozenset({"mlflow"})
_ELSEWHERE: frozenset[Place] = frozenset({"http", "event"})
_EVERYWHERE = _ELSEWHERE | _MLFLOW

COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("study", "text", "ledger", "the study"),
        Column("cell", "text", "ledger", "the cell's id", shown=_ELSEWHERE),
        Column("scale", "text", "cell", "model scale", shown=_ELSEWHERE),
        Column("attention_norm", "text", "cell", "attention and norm variant", shown=_ELSEWHERE),
        Column("method", "text", "cell", "output-head method", shown=_ELSEWHERE),
        Column("gamma", "number", "cell", "the method's gamma; empty for a method without one", shown=_ELSEWHERE),
        Column("factors", "text", "cell", "the study's factors with the run's values, as JSON; empty without any"),
        Column(
            "lr_factor", "text", "cell",
            "the factor on the axis of the run's curve: `lr`, or what the study gives as `lr_factor`",
        ),
        Column("lr", "number", "cell", "peak learning rate", shown=_ELSEWHERE),
        Column("seed", "integer", "cell", "seed", shown=_ELSEWHERE),
        Column("state", "text", "ledger", "as in the ledger", shown=_EVERYWHERE),
        Column("origin", "text", "ledger", "as in the ledger", shown=_EVERYWHERE),
        Column(
            "val_loss", "number", "result",
            "final validation loss: over the `training.final_eval_sequences` drawn from all of validation where the "
            "study asks for them, else of the last evaluation",
            "nats", shown=_EVERYWHERE, mlflow_key="final_val_loss",
        ),
        Column(
            "train_loss", "number", "result", "mean training loss between the last two evaluations", "nats",
            shown=_MLFLOW, mlflow_key="final_train_loss",
        ),
        Column(
            "l_init", "number", "result",
            "validation loss before the first step, over the first `training.eval_sequences`", "nats",
            shown=_EVERYWHERE,
        ),
        Column("steps", "integer", "result", "optimizer steps taken", shown=_EVERYWHERE),
        Column(
            "skipped_steps", "integer", "result",
            "steps not taken because the run was given up (`intervals.give_up`), 0 if their number is unknown; empty "
            "if it was not given up",
            shown=_MLFLOW,
        ),
        Column("tokens", "integer", "result", "tokens trained on", shown=_MLFLOW),
        Column(
            "train_seconds", "number", "result", "wall time of the steps, without evaluations and checkpoints", "s",
            shown=_EVERYWHERE,
        ),
        Column("tokens_per_second", "number", "result", "tokens over that time", "1/s", shown=_MLFLOW),
        *(
            Column(name, "number", "metrics", f"{name} of the last row of metrics", shown=_MLFLOW)
            for name in (
                "output_mu_norm", "logits_mean", "logits_std", "logits_absmean", "logits_absmax",
                "logits_mean_token_std", "logits_std_token_std", "logits_absmax_token_max", "log_z_squared",
                "output_mu_h_cosine", "output_mu_h_dot", "output_b_ratio", "attention_logit_max", "loss_spikes",
                "spike_score",
            )
        ),
        Column(
            "torch", "text", "result",
            "version and build of PyTorch that trained the run; for a resumed cell, at its end", shown=_MLFLOW,
        ),
        Column("reason", "text", "result", "why it diverged, crashed or was pruned", shown=_EVERYWHERE),
    )
}  # fmt: skip
RUN_COLUMNS = tuple(COLUMNS)
"""Columns of every table of runs, in this order."""


def columns_from(*sources: Source) -> tuple[str, ...]:
    """Names of the columns whose values come from these sources."""
    return tuple(name for name, column in COLUMNS.items() if column.source in sources)


def columns_shown(place: Place) -> tuple[str, ...]:
    """Names of the columns that are shown at ``place``."""
    return tuple(name for name, column in COLUMNS.items() if place in column.shown)


_RESULT = columns_from("result")


@dataclass(frozen=True, slots=True)
class Row:
    """One evaluation along a run: one line of ``metrics.jsonl``."""

    step: int
    """Optimizer steps taken."""
    time: float
    """Seconds since 1970."""
    metrics: Mapping[str, float]
    """Finite values, by key."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Row:
        """
        Raises:
            KeyError, TypeError, ValueError: ``content`` is not a row.
        """
        metrics = {sys.intern(name): value for name, value in content.items() if name not in ("step", "time")}
        if not all(type(value) in (int, float) for value in content.values()):
            raise ValueError("a value is not a number")
        try:
            return cls(int(content["step"]), float(content.get("time", 0.0)), metrics)
        except OverflowError as error:
            raise ValueError(str(error)) from error

    def to_json(self) -> dict[str, float]:
        own = {"step": self.step, "time": self.time}
        return own | dict(self.metrics) | own  # first, and never those of a metric

    @property
    def val_loss(self) -> float | None:
        """Validation loss in nats; None if it was not finite."""
        return self.metrics.get("val_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """The result of a run: ``COLUMNS`` say what the fields mean. Losses are plain cross-entropies in nats per token."""

    state: EndState | None = None
    """None until the run ends."""
    val_loss: float | None = None
    """Of the last evaluation in which it was finite."""
    train_loss: float | None = None
    l_init: float | None = None
    steps: int | None = None
    skipped_steps: int | None = None
    """Steps not taken because the run was given up, 0 if unknown; None if it was not given up."""
    tokens: int | None = None
    train_seconds: float | None = None
    """Over all resumptions."""
    tokens_per_second: float | None = None
    torch: str | None = None
    """Recorded because losses differ between versions, if only in the last digits."""
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the last row that are columns of the table of runs."""

    @classmethod
    def from_record(cls, state: EndState, record: Mapping[str, Any]) -> CellResult:
        """The inverse of ``record``, for a line of a ledger.

        Raises:
            ValueError: ``record`` is not a result.
        """
        if not isinstance(record, Mapping):
            raise ValueError("the result is not an object")
        own = {name: record[name] for name in _RESULT if record.get(name) is not None}
        for name, value in own.items():
            if not isinstance(value, str if COLUMNS[name].kind == "text" else (int, float)):
                raise ValueError(f"{name} has the value {value!r}")
        metrics = {sys.intern(name): x for name, x in record.items() if name not in _RESULT and x is not None}
        return cls(state=state, metrics=metrics, **own)

    def record(self) -> dict[str, float | str]:
        """The columns that have a value, in the order of the registry."""
        values = {name: getattr(self, name) for name in _RESULT} | dict(self.metrics)
        return {name: value for name, value in values.items() if value not in (None, "")}


NO_RESULT = CellResult()

Verdict = Literal["converged", "diverged", "running", "crashed", "stopped"]
"""Whether a run converged, or a learning rate with all its seeds. ``running`` means no result yet; ``crashed`` and
``stopped`` (by a person or a pruner) mean that there will be none."""
VERDICTS: dict[State, Verdict] = {
    "planned": "running",
    "running": "running",
    "finished": "converged",
    "diverged": "diverged",
    "crashed": "crashed",
    "pruned": "stopped",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run for its curve and for the search for the edge."""

    verdict: Verdict
    loss: float | None
    """Loss on the curve in nats: at most ``l_init``, and ``l_init`` for a diverged run; None without a result."""

    @classmethod
    def of(cls, state: State, val_loss: float | None, l_init: float | None) -> Outcome:
        """
        Args:
            state: the state in the ledger. A finished run whose loss is not finite, or above ``l_init``, has diverged.
            val_loss: final validation loss in nats; None or NaN if the run has none.
            l_init: validation loss before training in nats; None or NaN if unknown.
        """
        verdict = VERDICTS[state]
        l_init = None if l_init is None or math.isnan(l_init) else l_init
        if verdict == "converged":
            if val_loss is None:
                verdict = "crashed"  # no loss was recorded
            elif not math.isfinite(val_loss) or (l_init is not None and val_loss > l_init):
                verdict = "diverged"
        return cls(verdict, {"converged": val_loss, "diverged": l_init}.get(verdict))


def aggregate_seeds(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """The verdict on a learning rate from the verdicts on its seeds; None for a run that was never planned.

    A learning rate converges if it converges with every seed, so a single seed that diverged decides.
    """
    found = set(verdicts)
    order: tuple[Verdict | None, ...] = ("diverged", "crashed", "stopped", "running", None)
    return next((verdict for verdict in order if verdict in found), "converged")

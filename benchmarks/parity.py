"""The trainer against the published code: recorded steps, and initial values at the published scales.

``python -m benchmarks.parity [--steps] [--initial]``

The recording holds 24 runs of the unmodified published training loop on a CPU in float32: six methods, tied or untied,
without weight decay or with an independent weight decay of 1e-4; 40 steps of 8 sequences in two micro batches each. Our
engine starts from the same weights, trains on the same tokens, and uses its own schedule. The table lists the largest
relative difference over the steps of a run in loss, objective and gradient norm, and at its end the differences in the
norms of all parameters and in E's mean row, relative to the norm of a row.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dashboards import published
from search_spaces.cell import Cell
from search_spaces.scales import SCALES, Scale
from search_spaces.training_spec import ModelSpec, TrainingSpec
from trainers.engine import Engine
from trainers.head import Losses
from trainers.model import GPT
from trainers.optimizer import lr_at
from trainers.world import World

RECORDING = Path(__file__).with_name("reference_steps.npz")
V_PUBLISHED = 50_304


class Differences(NamedTuple):
    """Largest relative differences between one of our runs and the recorded one."""

    loss: float
    objective: float
    grad_norm: float
    final_norms: float
    """Difference in the norms of all parameters at the end."""
    final_mean: float
    """Difference in the components of E's mean row, relative to the root mean square of its rows' norms."""


@dataclass(frozen=True)
class RecordedRun:
    """One run of the recording, as a cell."""

    name: str
    cell: Cell
    micro_batch: int


class Recording:
    """The file of recorded steps."""

    def __init__(self, path: Path = RECORDING) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays: dict[str, NDArray[Any]] = dict(arrays)
        self.meta: dict[str, Any] = json.loads(bytes(self.arrays["meta"]))
        self.lrs: list[float] = self.arrays["lrs"].tolist()

    @property
    def runs(self) -> Iterator[RecordedRun]:
        meta = self.meta
        for run in meta["runs"]:
            training = TrainingSpec(
                steps=meta["steps"],
                batch_size=meta["batch"],
                sequence_length=meta["T"],
                warmup_steps=meta["warmup"],
                min_lr=meta["min_lr"],
                weight_decay=run["weight_decay"],
                precision="float32",
                logits_dtype="float32",
            )
            cell = Cell(
                scale="tiny",  # L 2, D 64, H 4
                method=run["method"],
                gamma=run["gamma"],
                lr=meta["lr"],
                seed=0,
                data="recorded",
                V=meta["V"],
                model=ModelSpec(tied=run["tied"]),
                training=training,
            )
            yield RecordedRun(run["name"], cell, meta["batch"] // meta["micro_batches"])

    def weights(self, tied: bool) -> dict[str, Tensor]:
        """Returns the initial weights by their names in our model."""
        prefix = f"{_kind(tied)}/weights/"
        return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith(prefix)}

    def tokens(self, tied: bool) -> NDArray[np.uint16]:
        """Returns the tokens, ``(steps, B, T + 1)``."""
        return self.arrays[f"{_kind(tied)}/tokens"]

    def final_norms(self, run: RecordedRun) -> dict[str, float]:
        prefix = f"runs/{run.name}/final_norm/"
        return {k.removeprefix(prefix): float(v) for k, v in self.arrays.items() if k.startswith(prefix)}

    def series(self, run: RecordedRun, name: str) -> NDArray[np.float64]:
        return self.arrays[f"runs/{run.name}/{name}"]


def _kind(tied: bool) -> str:
    return "tied" if tied else "untied"


def replay(recording: Recording, run: RecordedRun, engine: Engine) -> Differences:
    """Trains ``run`` on ``engine``, which has its shape, and compares each step with the recorded one."""
    engine.reset(run.cell)
    engine.warm_up(run.micro_batch)
    model = engine.objective.model
    model.load_state_dict(recording.weights(run.cell.model.tied))
    objectives: list[float] = []
    hook = engine.objective.register_forward_hook(lambda module, inputs, losses: objectives.append(_objective(losses)))
    taken = [
        engine.step(batch_BU, step=step, lr=lr_at(step, run.cell.training, run.cell.lr), micro_batch=run.micro_batch)
        for step, batch_BU in enumerate(recording.tokens(run.cell.model.tied))
    ]
    hook.remove()

    micro_batches = recording.meta["micro_batches"]
    norms = {name: float(weight.double().norm()) for name, weight in model.state_dict().items()}
    recorded = recording.final_norms(run)
    assert norms.keys() == recorded.keys()
    E_VD = model.E_VD.detach().double()
    row_norm = float(E_VD.norm()) / math.sqrt(len(E_VD))
    mean_D = E_VD.mean(dim=0).numpy()
    return Differences(
        loss=apart([step.loss for step in taken], recording.series(run, "loss")),
        objective=apart(np.reshape(objectives, (-1, micro_batches)).mean(axis=1), recording.series(run, "objective")),
        grad_norm=apart([step.grad_norm for step in taken], recording.series(run, "grad_norm")),
        final_norms=apart([norms[name] for name in recorded], list(recorded.values())),
        final_mean=float(np.abs(mean_D - recording.series(run, "final_E_mean")).max()) / row_norm,
    )


def _objective(losses: Losses) -> float:
    return float(losses.objective.detach())


def apart(ours: Any, theirs: Any) -> float:
    """Returns the largest relative difference."""
    return float(np.max(np.abs(np.asarray(ours) / np.asarray(theirs) - 1)))


def replay_all(recording: Recording) -> dict[str, Differences]:
    """Replays every run of the recording. Runs of the same shape share a warm engine."""
    engines: dict[bool, Engine] = {}
    found = {}
    for run in recording.runs:
        tied = run.cell.model.tied
        if tied not in engines:
            engines[tied] = Engine(run.cell, World.single(), compile=False)
        found[run.name] = replay(recording, run, engines[tied])
    return found


def table(found: Mapping[str, Differences]) -> str:
    """Returns a line for each run, and one for the maximum."""
    largest = Differences(*(max(column) for column in zip(*found.values(), strict=True)))
    lines = [f"{'largest relative difference':32}" + "".join(f"{name:>14}" for name in Differences._fields)]
    for name, row in {**found, "largest of all": largest}.items():
        lines.append(f"{name:32}" + "".join(f"{value:14.1e}" for value in row))
    return "\n".join(lines)


def published_stds(scale: Scale, V: int, tied: bool) -> dict[str, float]:
    """Returns the standard deviations of the initial values in the published code, by kind of matrix."""
    D, F = scale.D, scale.hidden
    E_std = math.sqrt(2 / (D + V))
    return {
        "attention.qkv": math.sqrt(2 / (D + 3 * D)),
        "attention.proj": 0.02 / math.sqrt(2 * scale.L),
        "mlp.gate": math.sqrt(2 / (D + F)),
        "mlp.up": math.sqrt(2 / (D + F)),
        "mlp.fc2": math.sqrt(2 / (D + F)),
        "E": E_std,
        "embedding": E_std if tied else D**-0.5,
    }


def matrices(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """Yields every matrix with its kind as in ``published_stds``; the only one of a tied model is ``embedding``."""
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        path = name.removesuffix(".weight").split(".")
        if path[-1] == "fc1":
            yield from zip(("mlp.gate", "mlp.up"), weight.detach().chunk(2), strict=True)
        elif path[0] == "blocks":
            yield ".".join(path[2:]), weight.detach()
        else:
            yield {"lm_head": "E"}.get(path[0], path[0]), weight.detach()


def drawn(scale: Scale, tied: bool, V: int = V_PUBLISHED) -> GPT:
    """Returns an initialized model, without the values that torch's modules draw themselves."""
    with torch.device("meta"):
        model = GPT(scale, ModelSpec(tied=tied), V, T=1)
    model.to_empty(device="cpu").reset_parameters(0)
    return model


def initial_values() -> str:
    """Lists drawn and published standard deviations, pooled over the blocks by kind."""
    lines = [f"{'initial standard deviation':28}" + "".join(f"{name:>18}" for name in published.SCALES)]
    columns: dict[str, list[str]] = {}
    for scale in (SCALES[name] for name in published.SCALES):
        for tied in (False, True):
            variances: dict[str, list[float]] = {}
            for kind, matrix in matrices(drawn(scale, tied)):
                if not tied or kind == "embedding":
                    variances.setdefault(kind, []).append(float(matrix.var()))
            expected = published_stds(scale, V_PUBLISHED, tied)
            for kind, found in variances.items():
                entry = f"{math.sqrt(np.mean(found)):.5f} {expected[kind]:.5f}"
                columns.setdefault("the one matrix, tied" if tied else kind, []).append(entry)
    lines += [f"{kind:28}" + "".join(f"{entry:>18}" for entry in entries) for kind, entries in columns.items()]
    return "\n".join([*lines, "each: drawn, published"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", action="store_true", help="the recorded steps alone")
    parser.add_argument("--initial", action="store_true", help="the initial values alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.initial:
        print(table(replay_all(Recording())))
    if not args.steps:
        print(("" if args.initial else "\n") + initial_values())


if __name__ == "__main__":
    main()

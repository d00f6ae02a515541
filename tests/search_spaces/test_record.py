"""Rows, results and outcomes of runs: they are read back as written, and every run has exactly one outcome."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.record import (
    COLUMNS,
    STATES,
    TERMINAL,
    VERDICTS,
    CellResult,
    EndState,
    Outcome,
    Row,
    State,
    Verdict,
    columns_from,
    columns_shown,
)

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
keys = st.text(min_size=1).filter(lambda key: key not in ("step", "time", *COLUMNS))
rows = st.builds(
    Row,
    step=st.integers(0, 2**53),
    time=st.floats(0, 1e12),
    metrics=st.dictionaries(keys | st.sampled_from(columns_from("metrics")), numbers),
)
results = st.builds(
    CellResult,
    state=st.sampled_from(sorted(TERMINAL)),
    **{
        name: st.none() | (st.text() if COLUMNS[name].kind == "text" else numbers)
        for name in columns_from("result")
        if name not in ("torch", "reason")
    },
    torch=st.none() | st.just("2.13.0+cpu"),
    reason=st.text(),
    metrics=st.dictionaries(keys | st.sampled_from(columns_from("metrics")), numbers),
)


@given(rows)
def test_a_row_is_read_back_as_it_was_written(row: Row) -> None:
    content = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert list(content)[:2] == ["step", "time"]
    assert Row.from_json(content) == row


def test_no_metric_replaces_a_field_of_its_row() -> None:
    content = Row(3, 5.0, {"time": 1.0, "step": 2.0, "a": 4.0}).to_json()
    assert list(content.items()) == [("step", 3), ("time", 5.0), ("a", 4.0)]


def test_a_row_without_a_time() -> None:
    """Tests and other programs write such rows; the time is only displayed."""
    assert Row.from_json({"step": 3, "val_loss": 2.0}) == Row(3, 0.0, {"val_loss": 2.0})


def test_the_loss_of_a_row() -> None:
    assert Row(0, 0.0, {"val_loss": 2.5}).val_loss == 2.5
    assert Row(0, 0.0, {"train_loss": 2.5}).val_loss is None, "a row lacks a validation loss that was not finite"


@pytest.mark.parametrize(
    "content",
    [{}, {"time": 1.0}, {"step": None}, {"step": "3"}, {"step": 3, "val_loss": None}, {"step": 3, "val_loss": True},
     {"step": math.nan}, {"step": math.inf}, {"step": 3, "time": 10**400}],
)  # fmt: skip
def test_what_is_not_a_row(content: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Row.from_json(content)


@given(results)
def test_a_result_is_read_back_as_it_was_written(result: CellResult) -> None:
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert result.state is not None
    assert CellResult.from_record(result.state, record) == result


def test_a_record_only_has_fields_with_a_value() -> None:
    assert CellResult(state="crashed").record() == {}
    assert CellResult(state="crashed", val_loss=0.0, steps=0).record() == {"val_loss": 0.0, "steps": 0}


OUTCOMES: list[tuple[State, float | None, float | None, Verdict, float | None]] = [
    ("planned", None, None, "running", None),
    ("running", None, None, "running", None),
    ("running", 2.0, 5.0, "running", None),
    ("crashed", None, None, "crashed", None),
    ("crashed", 2.0, 5.0, "crashed", None),
    ("pruned", 2.0, 5.0, "stopped", None),
    ("diverged", 9.0, 5.0, "diverged", 5.0),
    ("diverged", 2.0, 5.0, "diverged", 5.0),
    ("diverged", None, 5.0, "diverged", 5.0),
    ("diverged", None, None, "diverged", None),
    ("diverged", math.nan, math.nan, "diverged", None),
    ("finished", 2.0, 5.0, "converged", 2.0),
    ("finished", 5.0, 5.0, "converged", 5.0),
    ("finished", 5.1, 5.0, "diverged", 5.0),
    ("finished", 2.0, None, "converged", 2.0),
    ("finished", 2.0, math.nan, "converged", 2.0),
    ("finished", math.nan, 5.0, "diverged", 5.0),
    ("finished", math.inf, 5.0, "diverged", 5.0),
    ("finished", math.inf, None, "diverged", None),
    ("finished", None, 5.0, "crashed", None),
]


@pytest.mark.parametrize(("state", "val_loss", "l_init", "verdict", "loss"), OUTCOMES)
def test_outcome(
    state: State, val_loss: float | None, l_init: float | None, verdict: Verdict, loss: float | None
) -> None:
    assert Outcome.of(state, val_loss, l_init) == Outcome(verdict, loss)


def test_every_state_has_an_outcome() -> None:
    assert {state for state, *_ in OUTCOMES} == set(STATES) == set(VERDICTS)


losses = st.none() | st.floats(allow_nan=True, allow_infinity=True)


@given(st.sampled_from(STATES), losses, st.none() | st.just(math.nan) | st.floats(0, 20))
def test_a_loss_on_a_curve_is_finite_and_at_most_the_first(
    state: State, val_loss: float | None, l_init: float | None
) -> None:
    outcome = Outcome.of(state, val_loss, l_init)
    assert outcome.verdict in ("converged", "diverged") or outcome.loss is None
    if outcome.loss is not None:
        assert math.isfinite(outcome.loss)
        assert l_init is None or math.isnan(l_init) or outcome.loss <= l_init
    if outcome.verdict == "converged":
        assert outcome.loss == val_loss


def test_which_columns_are_shown_where() -> None:
    """Frozen because scripts read them: fields of the service's list of cells and of its events, and MLflow metrics."""
    assert columns_shown("http") == (
        "cell", "scale", "attention_norm", "method", "gamma", "lr", "seed", "state", "origin", "val_loss", "l_init",
        "steps", "train_seconds", "reason",
    )  # fmt: skip
    assert columns_shown("event") == columns_shown("http")
    metrics = [COLUMNS[name].mlflow_key or name for name in columns_shown("mlflow") if COLUMNS[name].kind != "text"]
    assert metrics == [
        "final_val_loss", "final_train_loss", "l_init", "steps", "skipped_steps", "tokens", "train_seconds",
        "tokens_per_second",
        *columns_from("metrics"),
    ]  # fmt: skip


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_terminal_states_are_states_of_the_ledger(state: EndState) -> None:
    assert state in STATES

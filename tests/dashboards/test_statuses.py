"""Status names of other programs, as defined in their installed versions."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dashboards.statuses import WORDS, state_of
from search_spaces.errors import InvalidInput
from search_spaces.record import STATES, State

WANDB: dict[str, State] = {
    "pending": "planned",
    "running": "running",
    "preempting": "running",
    "finished": "finished",
    "failed": "crashed",
    "crashed": "crashed",
    "killed": "crashed",
    "preempted": "crashed",
}
"""https://docs.wandb.ai/guides/runs/run-states"""


@pytest.mark.parametrize("word", [*STATES, *WANDB])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title, " {} ".format])
def test_words_in_any_case(word: str, case: type[str]) -> None:
    assert state_of(case(word)) == WANDB.get(word, word)


def test_every_status_of_mlflow() -> None:
    from mlflow.entities import RunStatus

    known: dict[str, State] = {"RUNNING": "running", "SCHEDULED": "planned", "FINISHED": "finished"}
    for number in RunStatus.all_status():
        word = RunStatus.to_string(number)
        assert state_of(word) == known.get(word, "crashed")


def test_every_status_of_optuna() -> None:
    from optuna.trial import TrialState

    expected: dict[str, State] = {
        "RUNNING": "running",
        "COMPLETE": "finished",
        "PRUNED": "pruned",
        "FAIL": "crashed",
        "WAITING": "planned",
    }
    for state in TrialState:
        assert state_of(state.name) == state_of(f"TrialState.{state.name}") == state_of(state) == expected[state.name]


def test_every_status_of_ray() -> None:
    from ray.job_submission import JobStatus
    from ray.train.v2._internal.state.schema import RunAttemptStatus, RunStatus
    from ray.tune.experiment.trial import Trial

    tune = (Trial.PENDING, Trial.RUNNING, Trial.PAUSED, Trial.TERMINATED, Trial.ERROR)
    assert [state_of(word) for word in tune] == ["planned", "running", "running", "finished", "crashed"]
    for status in (*JobStatus, *RunStatus, *RunAttemptStatus):
        state = state_of(status.value)
        if status.value in ("SUCCEEDED", "FINISHED"):
            assert state == "finished"
        if status.value in ("FAILED", "ERRORED", "ABORTED"):
            assert state == "crashed"


def test_a_word_has_one_state() -> None:
    words = [word for words in WORDS.values() for word in words.split()]
    assert len(words) == len(set(words))


@given(st.text())
def test_any_other_word_is_refused(word: str) -> None:
    known = {inner for words in WORDS.values() for inner in words.split()}
    assume("_".join(word.strip().lower().rpartition(".")[2].replace("-", " ").replace("_", " ").split()) not in known)
    with pytest.raises(InvalidInput, match="is not a state of a run") as caught:
        state_of(word)
    assert caught.value.value == word

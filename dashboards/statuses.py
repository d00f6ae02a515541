"""The states of runs in the words of other programs."""

from __future__ import annotations

from collections.abc import Mapping

from search_spaces.errors import InvalidInput
from search_spaces.record import STATES, State

WORDS: Mapping[State, str] = {
    "planned": "planned scheduled scheduling pending queued waiting submitted created initializing configuring",
    "running": "running started active paused preempting restarting resizing resuming in_progress",
    "finished": "finished complete completed completing success successful succeeded terminated done ok",
    "diverged": "diverged divergence diverging nan inf infinite nonfinite non_finite not_finite nan_loss loss_nan "
    "loss_is_nan exploded overflow",
    "crashed": "crashed crash failed fail failure error errored killed preempted aborted cancelled canceled "
    "interrupted timeout timed_out out_of_memory oom node_fail boot_fail deadline lost dead",
    "pruned": "pruned stopped early_stopped stopped_early",
}
"""Our state for each word of W&B, MLflow, Optuna (``TrialState``), Ray (Tune, Train, jobs), and Slurm."""
_STATES: Mapping[str, State] = {word: state for state, words in WORDS.items() for word in words.split()}


def state_of(status: object, column: str = "state") -> State:
    """Our state for a status in the words of another program, in any case: ``FINISHED``, ``TrialState.FAIL``.

    Args:
        column: where the status is, for errors.

    Raises:
        InvalidInput: the word is unknown.
    """
    word = str(status).strip().lower().rpartition(".")[2]
    state = _STATES.get("_".join(word.replace("-", " ").replace("_", " ").split()))
    if state is None:
        remedy = f"write {', '.join(STATES)}, or a word of W&B, MLflow, Optuna or Ray; or add --column state==finished"
        raise InvalidInput(column, status, "is not a state of a run", remedy)
    return state

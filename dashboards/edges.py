"""The edge of a curve as its runs show it: where between two learning rates it stops to converge."""

from __future__ import annotations

import pandas as pd

from search_spaces.edge import Edge, Outcome, bracket, together

OUTCOMES: dict[str, Outcome] = {
    "planned": "running",
    "running": "running",
    "finished": "converged",
    "diverged": "diverged",
    "crashed": "crashed",
}


def edge_of(runs: pd.DataFrame) -> Edge:
    """The edge of one curve, from its grid and from the runs that searched for it.

    A learning rate converged if it did with every seed of the grid. One off the grid whose seeds were not all run, as
    when a budget ended, says nothing unless one of them diverged.

    Args:
        runs: columns ``RUN_COLUMNS``, of one (scale, attention norm, method, gamma).
    """
    runs = runs[runs["state"].isin(list(OUTCOMES)) & (runs["origin"] != "refine")]
    on_grid = set(runs.loc[runs["origin"] != "edge", "lr"])
    seeds = runs["seed"].unique()
    outcomes: dict[float, Outcome] = {}
    for lr, at_lr in runs.groupby("lr"):
        found = {seed: OUTCOMES[state] for seed, state in zip(at_lr["seed"], at_lr["state"], strict=True)}
        joint = together(found.get(seed) for seed in seeds)
        if joint is not None or lr in on_grid:
            outcomes[float(str(lr))] = joint or "running"
    return bracket(outcomes)

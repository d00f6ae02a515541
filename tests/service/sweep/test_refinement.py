"""Edge searches in a sweep, with real Optuna storage and a real ledger; results are reported as a sweep would report
them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from dashboards.runs import from_records
from dashboards.sensitivity import edge_of
from search_spaces.cell import Cell
from search_spaces.edge import Edge
from search_spaces.plan import Plan
from search_spaces.record import CellResult, EndState
from search_spaces.study import Study
from service.home.ledger import Ledger
from service.sweep.refinement import Refinement
from service.sweep.search import CellSearch, open_storage
from tests.service.sweep.test_search import optuna_trials

LIMITS = {"baseline": 0.05, "z-loss": 0.5, "mu-centering": 1e9}
"""Learning rate from which a method diverges in these tests."""


def planned(refine: object, seeds: int = 1) -> Plan:
    return Plan(
        Study.validate_fields(
            {
                "name": "mine",
                "scales": ["tiny"],
                "methods": list(LIMITS),
                "lrs": [1e-2, 1e-1, 1.0],
                "seeds": seeds,
                "refine": refine,
            }
        ),
        "data",
    )


class Sweep:
    """Does what Tune and the recorder do, with up to ``slots`` cells at a time. Leaving it is like killing the
    driver."""

    def __init__(self, plan: Plan, folder: Path, slots: int = 2, retry_crashed: bool = False) -> None:
        self.plan, self.slots = plan, slots
        self.ledger = Ledger(folder / "ledger.jsonl", "mine", write=True)
        self.ledger.plan(plan.cells)
        missing = self.ledger.missing(retry_crashed=retry_crashed)
        self.search = CellSearch(plan, self.ledger, open_storage(folder / "optuna.journal"), missing)
        self.running: dict[str, Cell] = {}
        self.started: list[Cell] = []
        self.numbers = itertools.count()

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    def fill(self) -> bool:
        """Starts cells until all slots are taken or none is left. Returns whether Tune would continue."""
        while len(self.running) < self.slots:
            trial = str(next(self.numbers))
            config = self.search.suggest(trial)
            if not isinstance(config, dict):
                return config is None
            self.running[trial] = Cell.model_validate(config["cell"])
            self.started.append(self.running[trial])
        return True

    def end_first(self, crash: bool = False) -> None:
        trial, cell = next(iter(self.running.items()))
        del self.running[trial]
        state: EndState = "crashed" if crash else "diverged" if cell.lr >= LIMITS[cell.method] else "finished"
        self.end(trial, cell, CellResult(state=state, val_loss=3.0, l_init=5.0, train_seconds=30.0))

    def end(self, trial: str, cell: Cell, result: CellResult) -> None:
        self.ledger.start(cell.id)
        self.ledger.end(cell.id, result)
        self.search.on_trial_complete(trial, {"events": []}, error=result.state == "crashed")

    def stop_first(self) -> None:
        """Reports what a trial reports after ``oec stop --cell``."""
        trial, cell = next(iter(self.running.items()))
        del self.running[trial]
        self.end(trial, cell, CellResult(state="pruned", reason="oec stop", steps=20))

    def run(self, cells: int | None = None) -> None:
        """Runs to the end, or until ``cells`` cells have ended."""
        for ended in itertools.count():
            goes_on = self.fill()
            if ended == cells or not self.running:
                assert not goes_on or self.running, "Tune would wait forever"
                return
            self.end_first()

    def edges(self) -> dict[str, Edge]:
        return {curve.key.method: found.edge for curve, found in Refinement(self.plan, self.ledger).edges()}


def origins(ledger: Ledger, origin: str) -> list[Cell]:
    return [entry.cell for entry in ledger.entries.values() if entry.origin == origin]


EDGES = {
    "baseline": Edge(low=0.04217, high=0.05623),
    "z-loss": Edge(low=0.4217, high=0.5623),
    "mu-centering": Edge(low=1000.0),
}


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_the_edge_of_every_curve_with_the_fewest_runs(slots: int, tmp_path: Path) -> None:
    plan = planned({"edge": 1.4})
    with Sweep(plan, tmp_path, slots) as sweep:
        sweep.run()
        assert sweep.edges() == EDGES
        found = origins(sweep.ledger, "edge")
        assert [sum(cell.method == method for cell in found) for method in LIMITS] == [3, 3, 3]
        assert Refinement(plan, sweep.ledger).cells_left == {"tiny": 0}
        told = {trial.user_attrs["cell"] for trial in optuna_trials(tmp_path)}
        runs = from_records(sweep.ledger.records())
        assert {method: edge_of(rows) for method, rows in runs.groupby("method")} == EDGES, (
            "the table must show the same edges"
        )
        inside = {cell.id for cell in [*plan.cells, *found] if cell.lr <= 1.0}
        assert told == inside, "Optuna must know every cell within its search box, and no other"


def test_a_sweep_killed_at_any_cell_resumes_to_the_same_edges(tmp_path: Path) -> None:
    plan = planned({"edge": 1.4, "trials": 1})
    with Sweep(plan, tmp_path / "whole") as sweep:
        sweep.run()
        whole = {cell.id for cell in origins(sweep.ledger, "edge")}
    for cells in range(0, 21, 4):
        folder = tmp_path / str(cells)
        with Sweep(plan, folder) as sweep:
            sweep.run(cells)
        with Sweep(plan, folder) as sweep:
            sweep.run()
            assert sweep.edges() == EDGES
            assert {cell.id for cell in origins(sweep.ledger, "edge")} == whole
            assert len(origins(sweep.ledger, "refine")) == 3, "expected one trial per method"
            assert {entry.state for entry in sweep.ledger.entries.values()} <= {"finished", "diverged"}
        with Sweep(plan, folder) as sweep:
            assert sweep.search.suggest("again") == Searcher.FINISHED


def test_edges_narrow_at_the_same_pace(tmp_path: Path) -> None:
    with Sweep(planned({"edge": 1.4}), tmp_path, slots=1) as sweep:
        sweep.run(9 + 3)
        assert [cell.method for cell in sweep.started[9:12]] == list(LIMITS)


def test_a_crash_leaves_its_curve_without_an_edge_until_it_is_retried(tmp_path: Path) -> None:
    plan = planned({"edge": 1.4})
    with Sweep(plan, tmp_path, slots=1) as sweep:
        sweep.run(9)
        sweep.end_first(crash=True)
        sweep.run()
        assert sweep.edges() == EDGES | {"baseline": Edge(missing=0.03162)}
    with Sweep(plan, tmp_path) as sweep:
        assert sweep.search.suggest("again") == Searcher.FINISHED
    with Sweep(plan, tmp_path, slots=2, retry_crashed=True) as sweep:
        sweep.run()
        assert sweep.edges() == EDGES


def test_a_stopped_edge_cell_leaves_the_bracket_around_it(tmp_path: Path) -> None:
    """Table and search agree: the search of this curve is over, and those of the other curves continue."""
    plan, around = planned({"edge": 1.4}), Edge(low=0.01, high=0.1)
    with Sweep(plan, tmp_path, slots=1) as sweep:
        sweep.run(9)
        (cell,) = sweep.running.values()
        assert (cell.method, cell.lr) == ("baseline", 0.03162)
        sweep.stop_first()
        (found,) = [found for curve, found in Refinement(plan, sweep.ledger).edges() if curve.key.method == "baseline"]
        assert (found.edge, found.ask, found.cells_left) == (around, None, 0)
        sweep.run()
        assert sweep.edges() == EDGES | {"baseline": around}
        runs = from_records(sweep.ledger.records())
        assert {method: edge_of(rows) for method, rows in runs.groupby("method")} == sweep.edges()
        assert Refinement(plan, sweep.ledger).cells_left == {"tiny": 0}
    with Sweep(plan, tmp_path) as sweep:
        assert sweep.search.suggest("again") == Searcher.FINISHED


def test_an_edge_converges_with_every_seed(tmp_path: Path) -> None:
    plan = planned({"edge": 1.4}, seeds=2)
    with Sweep(plan, tmp_path) as sweep:
        sweep.run()
        assert sweep.edges() == EDGES
        runs = [(cell.lr, cell.seed) for cell in origins(sweep.ledger, "edge") if cell.method == "baseline"]
        assert runs == [(0.03162, 1), (0.03162, 2), (0.05623, 1), (0.04217, 1), (0.04217, 2)]


@pytest.mark.parametrize(("budget", "most"), [({"cells": 5}, 5), ({"minutes": 2}, 4 + 1), ({"cells": 99}, 12)])
def test_a_budget_ends_both_kinds_of_refinement(budget: dict[str, float], most: int, tmp_path: Path) -> None:
    """Every cell trains for 30 s, two at a time, so one may still be running when the minutes are used up."""
    plan = planned({"edge": 1.4, "trials": 1, "budget": budget})
    for _ in range(2):  # the second run must not start either of them again
        with Sweep(plan, tmp_path) as sweep:
            sweep.run()
            assert len(sweep.ledger.entries) == len(plan.cells) + most
            assert not sum(Refinement(plan, sweep.ledger).cells_left.values())


def test_a_search_continues_after_its_budget_is_raised(tmp_path: Path) -> None:
    for cells in (2, 5, 30):
        with Sweep(planned({"edge": 1.4, "budget": {"cells": cells}}), tmp_path) as sweep:
            sweep.run()
            assert len(origins(sweep.ledger, "edge")) == min(cells, 9)
            edges = sweep.edges()
    assert edges == EDGES

"""The cells off the grid that remain: a function of plan and ledger alone, so that a killed sweep resumes."""

from __future__ import annotations

import math
from collections import Counter

from search_spaces.cell import AnyCell
from search_spaces.edge import Search, search
from search_spaces.factors import CurveKey
from search_spaces.plan import Curve, Plan, limit_to_budget
from search_spaces.refine import Budget
from service.home.ledger import Ledger


class Refinement:
    """The refinements of a study, according to its ledger."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self._plan, self._ledger = plan, ledger
        self._spec = plan.study.refine
        self._searches: dict[CurveKey, tuple[int, Search]] = {}

    def edge_cell(self) -> AnyCell | None:
        """The next cell of a search for an edge, on the curve with the fewest such cells so far; None if runs have to
        end first, or if every search is over."""
        open_ = [(found.runs, curve, found.ask) for curve, found in self.edges() if found.ask]
        if not open_:
            return None
        _, curve, (lr, seed) = min(open_, key=lambda one: one[0])
        return self._plan.cell(curve.key, lr, seed)

    def edges(self) -> list[tuple[Curve, Search]]:
        """Every curve with the progress of the search for its edge; empty without ``refine.edge``."""
        return [] if self._spec.edge is None else [(curve, self._search(curve)) for curve in self._plan.curves]

    def _search(self, curve: Curve) -> Search:
        """The search of one curve. It is replayed only after the curve changed, because this is called for every
        cell."""
        changes, entries = self._ledger.curve(curve.key)
        if (known := self._searches.get(curve.key)) and known[0] == changes:
            return known[1]
        verdicts = {(entry.cell.x, entry.cell.seed): entry.outcome.verdict for entry in entries}
        study = self._plan.study
        assert study.refine.edge is not None
        edge, verdict = study.refine.edge, lambda lr, seed: verdicts.get((lr, seed))
        found = search(study.grid, study.seeds, edge, verdict, study.accepts)
        self._searches[curve.key] = (changes, found)
        return found

    @property
    def budget_exhausted(self) -> bool:
        """Whether the budget allows no further cell."""
        return self._budget_left() == 0

    @property
    def cells_left(self) -> dict[str, int]:
        """Upper bound of the cells that may still be proposed, by scale."""
        wanted: Counter[str] = Counter()
        for group, trials in self._plan.trials.items():
            wanted[group.scale] += trials
        for entry in list(self._ledger.off_grid):  # a copy: progress reads it in its own thread
            wanted[entry.cell.scale] -= entry.origin == "refine"
        for curve, found in self.edges():
            wanted[curve.scale] += found.cells_left
        return limit_to_budget(wanted, self._budget_left())

    def _budget_left(self) -> float:
        """Number of cells that the budget still allows: infinite without a budget, 0 once its minutes are used up."""
        if self._spec.budget == Budget():
            return math.inf
        cells, minutes = self._spec.budget.cells or math.inf, self._spec.budget.minutes or math.inf
        planned = list(self._ledger.off_grid)
        trained = sum(entry.result.train_seconds or 0.0 for entry in planned)
        return max(0.0, cells - len(planned)) if trained < 60 * minutes else 0.0

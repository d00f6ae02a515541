"""What is still to be refined: a function of plan and ledger alone, so that a killed sweep goes on where it was."""

from __future__ import annotations

import math
from collections import Counter

from search_spaces.cell import Cell, CurveKey
from search_spaces.edge import Outcome, Search, search
from search_spaces.plan import Curve, Plan, within
from search_spaces.refine import Budget
from service.home.ledger import Entry, Ledger


class Refinement:
    """The refinements of a study, as far as its ledger tells them."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self._plan, self._ledger = plan, ledger
        self._spec = plan.study.refine
        self._searches: dict[CurveKey, tuple[int, Search]] = {}

    def edge_cell(self) -> Cell | None:
        """The next cell in search of an edge, of the curve that has had the fewest; None while runs have to end
        first, and when every search is over."""
        open_ = [(found.runs, curve, found.ask) for curve, found in self.edges() if found.ask]
        if not open_:
            return None
        _, curve, (lr, seed) = min(open_, key=lambda one: one[0])
        return self._plan.cell(curve.scale, curve.attention_norm, curve.method, curve.gamma, lr, seed)

    def edges(self) -> list[tuple[Curve, Search]]:
        """Every curve, and how far the search for its edge has come; none without ``refine.edge``."""
        return [] if self._spec.edge is None else [(curve, self._search(curve)) for curve in self._plan.curves]

    def _search(self, curve: Curve) -> Search:
        """Replayed only after something changed in the curve: this is asked at the end of every cell."""
        changes, entries = self._ledger.curve(curve.key)
        if (known := self._searches.get(curve.key)) and known[0] == changes:
            return known[1]
        outcomes = {(entry.cell.lr, entry.cell.seed): outcome(entry) for entry in entries}
        study = self._plan.study
        assert study.refine.edge is not None
        found = search(study.lrs, study.seeds, study.refine.edge, lambda lr, seed: outcomes.get((lr, seed)))
        self._searches[curve.key] = (changes, found)
        return found

    @property
    def spent(self) -> bool:
        """The budget allows no further cell."""
        return self._budget_left() == 0

    @property
    def cells_left(self) -> dict[str, int]:
        """Cells that may still be proposed, by scale, at most."""
        wanted: Counter[str] = Counter()
        for scale, *_, trials in self._plan.refinements:
            wanted[scale] += trials
        for entry in list(self._ledger.beside):  # progress is drawn from a thread of its own
            wanted[entry.cell.scale] -= entry.origin == "refine"
        for curve, found in self.edges():
            wanted[curve.scale] += found.cells_left
        return within(wanted, self._budget_left())

    def _budget_left(self) -> float:
        """Cells; infinite without a budget, none once its minutes have passed."""
        if self._spec.budget == Budget():
            return math.inf
        cells, minutes = self._spec.budget.cells or math.inf, self._spec.budget.minutes or math.inf
        planned = list(self._ledger.beside)
        trained = sum(entry.result.get("train_seconds") or 0.0 for entry in planned)
        return max(0.0, cells - len(planned)) if trained < 60 * minutes else 0.0


def outcome(entry: Entry) -> Outcome:
    """What a cell says of the edge of its curve."""
    if entry.state in ("planned", "running"):
        return "running"
    if entry.state == "diverged":
        return "diverged"
    if entry.state == "finished":
        return "converged" if entry.result["val_loss"] <= entry.result["l_init"] else "diverged"
    return "crashed"

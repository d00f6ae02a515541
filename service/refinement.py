"""What is still to be refined: a function of plan and ledger alone, so that a killed sweep goes on where it was."""

from __future__ import annotations

import math
from collections import Counter

from search_spaces.cell import Cell
from search_spaces.edge import Outcome, Search, search
from search_spaces.plan import Curve, Plan, within
from search_spaces.refine import Budget
from service.ledger import Entry, Ledger


class Refinement:
    """The refinements of a study, as far as its ledger tells them."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self._plan, self._ledger = plan, ledger
        self._spec = plan.study.refine

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
        if self._spec.edge is None:
            return []
        outcomes = {
            (cell.scale, cell.attention_norm, cell.method, cell.gamma, cell.lr, cell.seed): outcome(entry)
            for entry in self._entries()
            for cell in (entry.cell,)
        }
        study, found = self._plan.study, []
        for curve in self._plan.curves:

            def of(lr: float, seed: int, curve: Curve = curve) -> Outcome | None:
                return outcomes.get((curve.scale, curve.attention_norm, curve.method, curve.gamma, lr, seed))

            found.append((curve, search(study.lrs, study.seeds, self._spec.edge, of)))
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
        for entry in self._entries():
            wanted[entry.cell.scale] -= entry.origin == "refine"
        for curve, found in self.edges():
            wanted[curve.scale] += found.cells_left
        return within(wanted, self._budget_left())

    def _budget_left(self) -> float:
        """Cells; infinite without a budget, none once its minutes have passed."""
        if self._spec.budget == Budget():
            return math.inf  # asked before every trial: no walk through a long ledger for nothing
        cells, minutes = self._spec.budget.cells or math.inf, self._spec.budget.minutes or math.inf
        planned = [entry for entry in self._entries() if entry.origin != "grid"]
        trained = sum(entry.result.get("train_seconds") or 0.0 for entry in planned)
        return max(0.0, cells - len(planned)) if trained < 60 * minutes else 0.0

    def _entries(self) -> list[Entry]:
        return list(self._ledger.entries.values())  # progress is drawn from a thread of its own


def outcome(entry: Entry) -> Outcome:
    """What a cell says of the edge of its curve."""
    if entry.state in ("planned", "running"):
        return "running"
    if entry.state == "diverged":
        return "diverged"
    if entry.state == "finished":
        return "converged" if entry.result["val_loss"] <= entry.result["l_init"] else "diverged"
    return "crashed"

"""The display of a running sweep: cells by state, speed, time left, the best loss of each method."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from search_spaces.cell import AnyCell
from search_spaces.methods import label
from search_spaces.plan import Plan
from search_spaces.record import TERMINAL, Row, State
from service.home.ledger import Entry, Ledger
from service.pace import Pace, clock_time
from service.sweep.refinement import Refinement

PLAIN_EVERY_S = 10.0
MAX_NAMED = 3
"""How many methods a plain line shows: those with the lowest losses."""


class Progress:
    """An observer of a sweep that draws on a console; plain lines if it is not a terminal."""

    def __init__(self, plan: Plan, ledger: Ledger, console: Console, clock: Callable[[], float] = time.monotonic):
        self._refinement = Refinement(plan, ledger)
        self._ledger, self._console, self._clock = ledger, console, clock
        self._has_tokens = plan.study.trainer is None
        """Whether cells train on tokens that are known."""
        self._started = clock()
        self._warm_at: float | None = None
        """When the first worker group was warm."""
        self._flops_done = 0.0
        self._tokens_done = 0.0
        self._running: dict[str, tuple[AnyCell, float]] = {}
        """Running cells with the share of their steps that is done."""
        self._resumed_at: dict[str, float] = {}
        """That share when this sweep resumed them."""
        self._flops = {cell.scale: cell.flops for cell in sorted(plan.cells, key=lambda cell: cell.flops)}
        """FLOPs of the longest cell, by scale."""
        self._best: dict[str, tuple[float, float]] = {}
        for entry in ledger.entries.values():
            self._update_best(entry)
        self._printed_at = -PLAIN_EVERY_S
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def on_start(self, entry: Entry) -> None:
        self._running[entry.id] = (entry.cell, 0.0)
        self._print_line()

    def on_row(self, entry: Entry, row: Row) -> None:
        self._warm_at = self._warm_at or self._clock()
        share = entry.cell.share_done(row.step)
        # The first row of a resumed cell comes one evaluation after its checkpoint: close enough.
        self._resumed_at.setdefault(entry.id, share)
        self._running[entry.id] = (entry.cell, share)

    def on_end(self, entry: Entry) -> None:
        self._running.pop(entry.id, None)
        self._update_best(entry)
        cell = entry.cell
        share = entry.share_done - self._resumed_at.pop(entry.id, 0.0)
        self._flops_done += cell.flops * share
        self._tokens_done += cell.tokens * share
        if self._cells_left() <= len(self._running):
            self._print_line()  # no cell starts after this one

    def _print_line(self) -> None:
        """Print a plain line if there is no terminal, and if the last line is old or no cell is left."""
        if self._console.is_terminal:
            return
        if self._clock() - self._printed_at >= PLAIN_EVERY_S or self._cells_left() == 0:
            self._printed_at = self._clock()
            found = sorted(self.best(), key=lambda one: one[1])[:MAX_NAMED]
            best = "  ".join(f"{name} {loss:.3f} at {lr:g}" for name, loss, lr in found)
            self._console.print(f"{self.line()} | best {best or 'none yet'}", highlight=False, soft_wrap=True)

    def line(self) -> str:
        """The state of the sweep in one line."""
        counts = self._ledger.counts()
        parts = [f"{self._ended(counts)}/{self._cells()} cells", f"{len(self._running)} running"]
        parts += [f"{counts[state]} {state}" for state in ("diverged", "crashed", "pruned") if counts[state]]
        if self._has_tokens and (speed := self.tokens_per_second()):
            parts.append(f"{speed:,.0f} tokens/s")
        parts.append(f"{clock_time(self._clock() - self._started)} elapsed")
        if self._warm_at is None:
            parts.append("starting workers")
        elif (seconds := self.seconds_left()) is not None:
            parts.append(f"{clock_time(seconds)} left")
        return " | ".join(parts)

    def tokens_per_second(self) -> float | None:
        """Tokens trained on per second, all cells together, since the first worker group was warm."""
        running = sum(cell.tokens * share for cell, share in self._trained_here())
        return Pace(self._tokens_done + running, self._elapsed_s()).per_second

    def seconds_left(self) -> float | None:
        """Upper bound of the wall seconds left, from the FLOPs done since the first group was warm and those left."""
        done = self._flops_done + sum(cell.flops * share for cell, share in self._trained_here())
        cells_left = Counter(self._ledger.left()) + Counter(self._refinement.cells_left)
        left = sum(self._flops[scale] * cells for scale, cells in cells_left.items())
        left -= sum(cell.flops * share for cell, share in list(self._running.values()))
        return Pace(done, self._elapsed_s()).seconds_for(left)

    def _trained_here(self) -> list[tuple[AnyCell, float]]:
        """Running cells, each with the share of its steps that this sweep has trained."""
        running = list(self._running.items())
        return [(cell, share - self._resumed_at.get(cell_id, share)) for cell_id, (cell, share) in running]

    def best(self) -> list[tuple[str, float, float]]:
        """``(scale, method and attention norm, best loss, its lr)`` of every method that has one."""
        return [(name, loss, lr) for name, (loss, lr) in list(self._best.items())]

    def _update_best(self, entry: Entry) -> None:
        """Remember the cell if it is the best of its method so far."""
        cell, outcome = entry.cell, entry.outcome
        if outcome.verdict == "converged" and outcome.loss is not None:
            name = f"{cell.scale} {label(cell.method, None, cell.attention_norm, dict(cell.curve_factors))}"
            candidate = (outcome.loss, cell.x)
            self._best[name] = min(self._best.get(name, candidate), candidate)

    def _elapsed_s(self) -> float:
        return self._clock() - self._warm_at if self._warm_at is not None else 0.0

    def _ended(self, counts: Counter[State]) -> int:
        return sum(counts[state] for state in TERMINAL)

    def _cells(self) -> int:
        """Cells of the study; an upper bound while an edge is searched for."""
        return len(self._ledger.entries) + sum(self._refinement.cells_left.values())

    def _cells_left(self) -> int:
        return self._cells() - self._ended(self._ledger.counts())

    def _panel(self) -> RenderableType:
        figures = (Column(name, justify="right") for name in ("best loss", "at lr"))
        table = Table("method", *figures, box=None, pad_edge=False)
        for name, loss, lr in self.best():
            table.add_row(name, f"{loss:.4f}", f"{lr:g}")
        running = "\n".join(f"  {cell.label}  {share:4.0%}" for cell, share in list(self._running.values()))
        bar = Table.grid(expand=True)  # a bar alone does not end its line, which would cut off the next one
        bar.add_row(ProgressBar(total=self._cells(), completed=self._ended(self._ledger.counts())))
        return Group(bar, Text(self.line()), Text(running, style="dim"), table)

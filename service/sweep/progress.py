"""What a person sees while a sweep runs: cells by state, speed, the time left, the best of each method."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search_spaces.cell import Cell
from search_spaces.methods import label
from search_spaces.plan import Plan
from service.home.ledger import Ledger
from service.sweep.refinement import Refinement
from trainers.job import Event

PLAIN_EVERY_S = 10.0
NAMED = 3
"""Methods whose best loss a plain line tells: those with the lowest."""


class Progress:
    """An observer of a sweep that draws on a console; plain lines when it is no terminal."""

    def __init__(self, plan: Plan, ledger: Ledger, console: Console, clock: Callable[[], float] = time.monotonic):
        self._refinement = Refinement(plan, ledger)
        self._ledger, self._console, self._clock = ledger, console, clock
        self._started = clock()
        self._warm: float | None = None
        self._flops_done = 0.0
        self._tokens_done = 0.0
        self._share: dict[str, tuple[Cell, float]] = {}  # running cells and how far they are, 0 to 1
        self._resumed_at: dict[str, float] = {}  # how far they were when this sweep took them up
        self._flops = {curve.scale: curve.cells[0].flops for curve in plan.curves}  # a cell's, the same over a scale
        self._best: dict[str, tuple[float, float]] = {}
        for entry in ledger.entries.values():
            self._compare(entry.cell, entry.state, entry.result)
        self._drawn = -PLAIN_EVERY_S
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def running(self, cell: Cell) -> None:
        self._share[cell.id] = (cell, 0.0)
        self._tell()

    def row(self, cell: Cell, row: Event) -> None:
        self._warm = self._warm or self._clock()
        share = row["step"] / cell.training.steps
        # The first row of a resumed cell comes one evaluation after its checkpoint: near enough.
        self._resumed_at.setdefault(cell.id, share)
        self._share[cell.id] = (cell, share)

    def ended(self, cell: Cell, record: dict[str, Any]) -> None:
        self._share.pop(cell.id, None)
        self._compare(cell, record["state"], record)
        done = (record.get("steps") or 0) / cell.training.steps - self._resumed_at.pop(cell.id, 0.0)
        self._flops_done += cell.flops * done
        self._tokens_done += cell.tokens * done
        if not self._console.is_terminal and self._remaining_cells() <= len(self._share):
            self._tell()  # no cell begins after this one

    def _tell(self) -> None:
        """A plain line where there is no terminal, if the last one was a while ago or nothing remains to be told."""
        if self._console.is_terminal:
            return
        if self._clock() - self._drawn >= PLAIN_EVERY_S or self._remaining_cells() == 0:
            self._drawn = self._clock()
            found = sorted(self.best(), key=lambda one: one[1])[:NAMED]
            best = "  ".join(f"{name} {loss:.3f} at {lr:g}" for name, loss, lr in found)
            self._console.print(f"{self.line()} | best {best or 'none yet'}", highlight=False, soft_wrap=True)

    def line(self) -> str:
        """The state of the sweep in one line."""
        counts = self._ledger.counts()
        done = self._done(counts)
        parts = [f"{done}/{self._cells()} cells", f"{len(self._share)} running"]
        parts += [f"{counts[state]} {state}" for state in ("diverged", "crashed", "pruned") if counts[state]]
        if speed := self.tokens_per_second():
            parts.append(f"{speed:,.0f} tokens/s")
        parts.append(f"{clock_time(self._clock() - self._started)} elapsed")
        eta = self.eta_seconds()
        parts.append("starting workers" if self._warm is None else f"{clock_time(eta)} left" if eta is not None else "")
        return " | ".join(part for part in parts if part)

    def tokens_per_second(self) -> float | None:
        """Tokens trained on, all cells together, a second since the first worker group was warm."""
        elapsed = self._elapsed()
        running = sum(cell.tokens * done for cell, done in self._running())
        return (self._tokens_done + running) / elapsed if elapsed else None

    def eta_seconds(self) -> float | None:
        """Wall seconds left, at most, from the FLOPs done since the first group was warm and those that remain."""
        elapsed = self._elapsed()
        done = self._flops_done + sum(cell.flops * share for cell, share in self._running())
        if not elapsed or not done:
            return None
        cells_left = Counter(self._ledger.left()) + Counter(self._refinement.cells_left)
        left = sum(self._flops[scale] * cells for scale, cells in cells_left.items())
        left -= sum(cell.flops * share for cell, share in list(self._share.values()))
        return left / done * elapsed

    def _running(self) -> list[tuple[Cell, float]]:
        """Running cells, and the share of each that was trained by this sweep."""
        return [(cell, share - self._resumed_at.get(cell.id, share)) for cell, share in list(self._share.values())]

    def best(self) -> list[tuple[str, float, float]]:
        """``(scale, method and attention norm, best loss, its lr)`` of every method that has one."""
        return [(name, loss, lr) for name, (loss, lr) in list(self._best.items())]

    def _compare(self, cell: Cell, state: str, result: Mapping[str, Any]) -> None:
        """Keep the cell if it is the best of its method."""
        if state == "finished":
            name = f"{cell.scale} {label(cell.method, None, cell.attention_norm)}"
            candidate = (result["val_loss"], cell.lr)
            self._best[name] = min(self._best.get(name, candidate), candidate)

    def _elapsed(self) -> float:
        return self._clock() - self._warm if self._warm is not None else 0.0

    def _done(self, counts: Counter[Any]) -> int:
        return sum(counts[state] for state in ("finished", "diverged", "crashed", "pruned"))

    def _cells(self) -> int:
        """Cells of the study; at most so many while an edge is searched."""
        return len(self._ledger.entries) + sum(self._refinement.cells_left.values())

    def _remaining_cells(self) -> int:
        return self._cells() - self._done(self._ledger.counts())

    def _panel(self) -> RenderableType:
        done = self._done(self._ledger.counts())
        table = Table(box=None, pad_edge=False)
        for column in ("method", "best loss", "at lr"):
            table.add_column(column, justify="left" if column == "method" else "right")
        for name, loss, lr in self.best():
            table.add_row(name, f"{loss:.4f}", f"{lr:g}")
        running = Text(
            "\n".join(f"  {cell.label}  {share:4.0%}" for cell, share in list(self._share.values())), style="dim"
        )
        return Group(ProgressBar(total=self._cells(), completed=done), Text(self.line()), running, table)


def clock_time(seconds: float | None) -> str:
    """``75`` as ``1:15``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""``oec status`` and ``oec watch``: where studies stand, from their ledgers and the metrics of their cells alone.

They hold no lock and write only the page, so any number of people can watch, on any machine that can read the home.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from statistics import mean

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from search_spaces.cell import Cell
from search_spaces.factors import LR, short_name
from search_spaces.intervals import given_up_note
from search_spaces.methods import label
from search_spaces.record import STATES, TERMINAL
from service.home import copies
from service.home.layout import Home
from service.home.ledger import Entry
from service.home.studies import LiveRows, is_running, read_ledger, require_study, with_ledger
from service.pace import Pace, clock_time

EVERY_S = 2.0
PAGE_EVERY_S = 30
"""Seconds between two pages, but at least ``PAGE_SHARE`` times the processor time that one takes."""
PAGE_SHARE = 20
MARKS = {"diverged": "×", "crashed": "!", "pruned": "–", "planned": "·"}
"""Shown in place of a loss."""
LEGEND = "· planned  × diverged  ! crashed  – pruned  dim: loss so far"


def status_tables(home: Home, study: str | None, cells: bool) -> Iterator[RenderableType]:
    """Cells by state, one line per study; with ``cells``, one line per cell; then every crash with its reason.

    Raises:
        InvalidInput: the home has no such study.
    """
    if study is not None:
        require_study(home, study)
    ledgers = [read_ledger(home, name) for name in ([study] if study else with_ledger(home))]
    if not ledgers:
        yield f"no studies in {home} yet"
        return
    summary = Table("study", *STATES)
    for ledger in ledgers:
        counts = ledger.counts()
        summary.add_row(ledger.study, *(str(counts[state]) for state in STATES))
    yield summary
    for ledger in ledgers:
        if note := given_up_note(entry.result for entry in ledger.entries.values()):
            yield f"{ledger.study}: {note}"
    entries = [entry for ledger in ledgers for entry in ledger.entries.values()]
    if cells:
        table = Table("cell", "what", "state", "val loss", "train time")
        for entry in entries:
            loss, seconds = entry.result.val_loss, entry.result.train_seconds
            shown = ("" if loss is None else f"{loss:.4f}", "" if seconds is None else clock_time(seconds))
            table.add_row(entry.id, entry.cell.label, entry.state, *shown)
        yield table
    for entry in entries:
        if entry.state == "crashed":
            yield f"{entry.id} {entry.cell.label} crashed:\n{entry.result.reason}"


class LivePage:
    """The report's page, rewritten while the study runs."""

    def __init__(self, home: Home, study: str, console: Console) -> None:
        self._home, self._study, self._console = home, study, console
        self._due = 0.0

    def write(self, running: bool) -> None:
        """Write it if it is due, and in any case once the study no longer runs."""
        from service.report.report import write_live_page  # takes seconds

        if running and time.monotonic() < self._due:
            return
        start = time.process_time()  # next to the training, wall time would be three times as long
        path = write_live_page(self._study, self._home, PAGE_EVERY_S if running else None)
        if not self._due:
            self._console.print(f"page: {path}", soft_wrap=True)
        self._due = time.monotonic() + max(PAGE_EVERY_S, PAGE_SHARE * (time.process_time() - start))


def watch(
    home: Home, study: str, console: Console, *, once: bool, page: bool = False, every_s: float = EVERY_S
) -> None:
    """Draw the study until it no longer runs; only once with ``once``, or if the output is not a terminal.

    With ``page``, the report's page is written too, for as long as the study runs.

    Raises:
        InvalidInput: the study is not in the home, or its ledger is damaged.
    """
    require_study(home, study)
    view = StudyView(home, study)
    pages = LivePage(home, study, console) if page else None
    follow = not once and (console.is_terminal or pages is not None)
    with Live(console=console, auto_refresh=False) if follow and console.is_terminal else nullcontext() as live:
        while True:
            running = is_running(home, study)  # before the ledger is read, so that the last drawing shows the end
            if live:
                live.update(view.draw(running), refresh=True)
            elif not follow:
                console.print(view.draw(running))
            if pages:
                pages.write(running)
            if not (running and follow):
                return
            time.sleep(every_s)


class StudyView:
    """A line of counts, the curves of a study, and its running cells."""

    def __init__(self, home: Home, study: str) -> None:
        self._home, self._study = home, study
        self._ledger = read_ledger(home, study)
        self._rows = LiveRows(home, study)

    def draw(self, running: bool) -> RenderableType:
        """``running``: whether a driver is at work on the study."""
        copies.pull(self._home, self._study)
        if self._ledger.path.stat().st_size < self._ledger.size:  # a study that never started was replaced
            self._ledger = read_ledger(self._home, self._study)
        self._ledger.refresh()
        entries = list(self._ledger.entries.values())
        copies.download_metrics(self._home, [(entry.id, self._study) for entry in entries if entry.state == "running"])
        return Group(  # what is below the lower end of a terminal is not shown
            Text(self.summary(entries, running)),
            self._curves([entry for entry in entries if entry.origin == "grid"]),
            Text(LEGEND, style="dim"),
            self._running_cells(entries),
        )

    def _curves(self, grid: list[Entry]) -> Table:
        xs = sorted({entry.cell.x for entry in grid})
        columns = (Column(f"{x:g}", justify="right") for x in xs)
        axis = next((short_name(entry.cell.lr_factor) for entry in grid if entry.cell.lr_factor != LR), "learning rate")
        table = Table("", *columns, box=SIMPLE_HEAD, title=f"{self._study}: final loss by {axis}")
        curves: dict[str, dict[float, list[Entry]]] = {}
        for entry in grid:
            cell = entry.cell
            name = f"{cell.scale} {label(cell.method, cell.gamma, cell.attention_norm, dict(cell.curve_factors))}"
            curves.setdefault(name, {}).setdefault(cell.x, []).append(entry)
        for name, by_x in curves.items():
            table.add_row(name, *(self.point(by_x.get(x, [])) for x in xs))
        return table

    def _running_cells(self, entries: Iterable[Entry]) -> Table:
        table = Table.grid(padding=(0, 2))
        for entry in entries:
            if entry.state == "running":
                row = self._rows.newest(entry.id)
                of = f" of {entry.cell.steps}" if entry.cell.steps else ""
                steps = f"step {row.step if row else 0}{of}"
                table.add_row(f"  {entry.cell.label}", steps, f"loss {row.val_loss:.3f}" if row else "")
        return table

    def point(self, entries: list[Entry]) -> Text:
        """One learning rate of a curve: the mean final loss over its seeds, or marks for cells without one."""
        losses = [outcome.loss for entry in entries if (outcome := entry.outcome).verdict == "converged"]
        found = {MARKS[entry.state] for entry in entries if entry.state in MARKS}
        marks = "".join(sorted(found - {"·"} if losses else found))
        if losses:
            return Text(f"{marks} {mean(loss for loss in losses if loss is not None):.3f}".strip())
        rows = [self._rows.newest(entry.id) for entry in entries if entry.state == "running"]
        newest = [row.val_loss for row in rows if row and row.val_loss is not None]
        if newest:
            return Text(f"{marks.replace('·', '')} {mean(newest):.3f}".strip(), style="dim")
        return Text(marks or " ", style="red" if "!" in marks else "")

    def summary(self, entries: list[Entry], running: bool) -> str:
        """Cells by state, tokens per second and time left, from the training times of the cells that ended."""
        counts = {state: sum(entry.state == state for entry in entries) for state in ("running", *sorted(TERMINAL))}
        ended = sum(counts[state] for state in TERMINAL)
        parts = [f"{ended}/{len(entries)} cells", *(f"{n} {state}" for state, n in counts.items() if n)]
        concurrent = counts["running"]
        if concurrent and running:
            timed = [entry for entry in entries if entry.result.train_seconds and entry.reused_from is None]
            seconds = sum(entry.result.train_seconds or 0.0 for entry in timed) / concurrent
            tokens = sum(entry.cell.tokens * entry.share_done for entry in timed if isinstance(entry.cell, Cell))
            if speed := Pace(tokens, seconds).per_second:
                parts.append(f"{speed:,.0f} tokens/s")
            done = sum(entry.cell.flops * entry.share_done for entry in timed)
            if (left := Pace(done, seconds).seconds_for(self._flops_left(entries))) is not None:
                parts.append(f"{clock_time(left)} left")
        if running and not concurrent and ended < len(entries):
            parts.append("starting workers")
        if not running:
            parts.append("not running" if ended < len(entries) else "ended")
        return " | ".join(parts)

    def _flops_left(self, entries: Iterable[Entry]) -> float:
        left = 0.0
        for entry in entries:
            if entry.state in ("planned", "running"):
                row = self._rows.newest(entry.id) if entry.state == "running" else None
                left += entry.cell.flops * (1 - entry.cell.share_done(row.step if row else 0))
        return left

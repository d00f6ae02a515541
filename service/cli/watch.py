"""``oec watch``: a study while it runs, from its ledger and its cells' metrics alone.

It holds no lock and writes nothing but the page, so that any number may watch, from any machine that sees the home.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from statistics import mean

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search_spaces.errors import InvalidInput
from search_spaces.methods import label
from service.home.layout import Home
from service.home.ledger import TERMINAL, Entry, Ledger
from service.sweep.progress import clock_time
from service.sweep.stop import being_run
from trainers.rows import read

EVERY_S = 2.0
PAGE_EVERY_S = 30
"""Seconds between two pages, and at least ``PAGE_SHARE`` times the processor time that one takes."""
PAGE_SHARE = 20
MARKS = {"diverged": "×", "crashed": "!", "pruned": "–", "planned": "·"}
"""What stands in place of a loss."""
LEGEND = "loss · planned  × diverged  ! crashed  – pruned; dim: the newest loss of cells that run"


class Running:
    """The newest rows of the cells that run, each file read when it has grown."""

    def __init__(self, home: Home, study: str) -> None:
        self._home, self._study = home, study
        self._seen: dict[str, tuple[int, dict[str, float] | None]] = {}

    def newest(self, cell_id: str) -> dict[str, float] | None:
        """The last row with a validation loss; None before the first."""
        path = self._home.metrics(cell_id, self._study)
        size = path.stat().st_size if path.is_file() else 0
        before = self._seen.get(cell_id, (-1, None))
        if size != before[0]:
            before = self._seen[cell_id] = (size, self._last(path))
        return before[1]

    def _last(self, path: Path) -> dict[str, float] | None:
        try:
            rows = [row for row in read(path) if "val_loss" in row]
        except InvalidInput:  # read in the middle of a line's being written over a network file system
            return None
        return rows[-1] if rows else None


class Page:
    """The report's page, written anew while the study runs."""

    def __init__(self, home: Home, study: str, console: Console) -> None:
        self._home, self._study, self._console = home, study, console
        self._due = 0.0

    def write(self, goes_on: bool) -> None:
        """Write it if it is time, and in any case where the study no longer runs."""
        from service.report.report import live_page  # seconds

        if goes_on and time.monotonic() < self._due:
            return
        began = time.process_time()  # by the clock it takes three times as long beside the training
        path = live_page(self._study, self._home, PAGE_EVERY_S if goes_on else None)
        if not self._due:
            self._console.print(f"page: {path}", soft_wrap=True)
        self._due = time.monotonic() + max(PAGE_EVERY_S, PAGE_SHARE * (time.process_time() - began))


def watch(
    home: Home, study: str, console: Console, *, once: bool, page: bool = False, every_s: float = EVERY_S
) -> None:
    """Draw the study until it is no longer being run; once only where that is asked for or nothing can be redrawn.

    With ``page`` the report's page is written too, as long as the study runs.

    Raises:
        InvalidInput: the study is not in the home, or its ledger is damaged.
    """
    home.require(study)
    running = Running(home, study)
    pages = Page(home, study, console) if page else None
    if once or not (console.is_terminal or pages):
        console.print(drawing(home, study, running))
        if pages:
            pages.write(being_run(home, study))
        return
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            goes_on = being_run(home, study)  # before the ledger: the last drawing shows how it ended
            home.pull(study)
            if live:
                live.update(drawing(home, study, running), refresh=True)
            if pages:
                pages.write(goes_on)
            if not goes_on:
                return
            time.sleep(every_s)


def drawing(home: Home, study: str, running: Running) -> RenderableType:
    """The curves, what runs, and a line of counts."""
    entries = list(Ledger(home.ledger(study), study).entries.values())
    home.bring((entry.cell.id, study) for entry in entries if entry.state == "running")
    of_grid = [entry for entry in entries if entry.origin == "grid"]
    lrs = sorted({entry.cell.lr for entry in of_grid})
    table = Table("", *(f"{lr:g}" for lr in lrs), box=SIMPLE_HEAD, title=f"{study}: final loss by learning rate")
    for column in table.columns[1:]:
        column.justify = "right"
    curves: dict[str, dict[float, list[Entry]]] = {}
    for entry in of_grid:
        cell = entry.cell
        name = f"{cell.scale} {label(cell.method, cell.gamma, cell.attention_norm)}"
        curves.setdefault(name, {}).setdefault(cell.lr, []).append(entry)
    for name, by_lr in curves.items():
        table.add_row(name, *(point(by_lr.get(lr, []), running) for lr in lrs))
    training = Table.grid(padding=(0, 2))
    for entry in entries:
        if entry.state == "running":
            row = running.newest(entry.cell.id) or {}
            steps = f"step {row.get('step', 0):.0f} of {entry.cell.training.steps}"
            loss = f"loss {row['val_loss']:.3f}" if "val_loss" in row else ""
            training.add_row(f"  {entry.cell.label}", steps, loss)
    return Group(table, Text(LEGEND, style="dim"), training, Text(summary(entries, running, being_run(home, study))))


def point(entries: Iterable[Entry], running: Running) -> Text:
    """A learning rate of a curve: the mean of the final losses over its seeds, or the state of what has none."""
    entries = list(entries)
    losses = [entry.result["val_loss"] for entry in entries if entry.state == "finished"]
    marks = "".join(sorted({MARKS[entry.state] for entry in entries if entry.state in MARKS} - {"·" if losses else ""}))
    if losses:
        return Text(f"{marks} {mean(losses):.3f}".strip())
    rows = [running.newest(entry.cell.id) for entry in entries if entry.state == "running"]
    newest = [row["val_loss"] for row in rows if row and math.isfinite(row["val_loss"])]
    if newest:
        return Text(f"{marks.replace('·', '')} {mean(newest):.3f}".strip(), style="dim")
    return Text(marks or " ", style="red" if "!" in marks else "")


def summary(entries: list[Entry], running: Running, goes_on: bool) -> str:
    """Cells by state, tokens a second and time left, from the training times of the cells that ended."""
    counts = {state: sum(entry.state == state for entry in entries) for state in ("running", *sorted(TERMINAL))}
    done = sum(counts[state] for state in TERMINAL)
    parts = [f"{done}/{len(entries)} cells", *(f"{n} {state}" for state, n in counts.items() if n)]
    timed = [entry for entry in entries if entry.result.get("train_seconds") and entry.reused_from is None]
    at_once = counts["running"]
    if timed and at_once and goes_on:
        seconds = sum(entry.result["train_seconds"] for entry in timed)
        steps = [(entry, entry.result.get("steps") or 0) for entry in timed]
        tokens = sum(entry.cell.tokens / entry.cell.training.steps * n for entry, n in steps)
        flops = sum(entry.cell.flops / entry.cell.training.steps * n for entry, n in steps)
        left = sum(entry.cell.flops for entry in entries if entry.state in ("planned", "running"))
        for entry in entries:
            if entry.state == "running" and (row := running.newest(entry.cell.id)):
                left -= entry.cell.flops * row["step"] / entry.cell.training.steps
        parts.append(f"{tokens / seconds * at_once:,.0f} tokens/s")
        if flops:
            parts.append(f"{clock_time(left / flops * seconds / at_once)} left")
    if not goes_on:
        parts.append("not being run" if done < len(entries) else "ended")
    return " | ".join(parts)

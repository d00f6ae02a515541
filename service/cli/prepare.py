"""``oec data prepare``: interprets its SOURCE, and shows progress."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from search_spaces.errors import InvalidInput, expand
from search_spaces.shipped import shipped
from search_spaces.study import Study
from service.home.data import prepare_tokens
from service.home.layout import Home
from service.pace import Pace, clock_time
from service.sweep.progress import PLAIN_EVERY_S
from service.sweep.stop import Interrupts
from trainers.data.preparation import Observer, Recipe, tokenize

STUDY_ENDINGS = (".yaml", ".yml")


def prepare(
    source: str, home: Home, out: Path | None, workers: int | None, settings: Mapping[str, Any], console: Console
) -> None:
    """Create the tokens of a study in the home, or token files of any other source in ``out``.

    Args:
        settings: fields of a ``Recipe``; None for those that were not given.

    Raises:
        InvalidInput: the source or an option is invalid.
        KeyboardInterrupt: SIGINT or SIGTERM; the same call resumes.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if source in shipped() or source.endswith(STUDY_ENDINGS):
        extra = given | {name: value for name, value in (("out", out), ("workers", workers)) if value is not None}
        for name, value in extra.items():
            problem = "does not apply to a study, which has its own data field"
            raise InvalidInput(f"--{name.replace('_', '-')}", str(value), problem, "remove it")
        tokens = prepare_tokens(Study.load(source), home, console.print)
        console.print(
            f"{tokens.train.tokens:,} training and {tokens.validation.tokens:,} validation tokens, "
            f"{tokens.vocab_size} ids in use, digest {tokens.digest}",
            soft_wrap=True,
        )
        return
    if workers is not None and workers < 1:
        raise InvalidInput("--workers", workers, "must be positive", "give 1 or more")
    if home.bucket and not out:
        remedy = "give a folder that every node can read, for the data.path of studies"
        raise InvalidInput("--out", "(not given)", f"is required, because the home is the bucket {home}", remedy)
    recipe = Recipe(source=source, **given)
    recipe.check()
    folder = (expand(str(out), "--out") if out else home.path / "data" / recipe.documents.name).absolute()
    with Interrupts(), console.status(f"opening {source}") as status:
        progress = Progress(console, status.update)
        observer = Observer(lambda line: console.print(line, soft_wrap=True), progress)
        manifest = tokenize(recipe, folder, workers=workers or os.cpu_count() or 1, observer=observer)
    console.print(
        f"complete: {manifest.tokens:,} tokens of {manifest.documents:,} documents in {len(manifest.files)} files "
        f"in {folder}; use them in a study with:",
        soft_wrap=True,
    )
    data = {
        "source": "shards",
        "path": f"{glob.escape(str(folder))}/train-*.bin",
        "validation": f"{glob.escape(str(folder))}/val-*.bin",
        "vocab_size": manifest.vocab_size,
    }
    flow = yaml.safe_dump(data, default_flow_style=True, sort_keys=False, width=float("inf"))
    console.print(f"data: {flow}".rstrip(), soft_wrap=True)


class Progress:
    """Shows tokens, speed and time left in one line: continuously on a terminal, otherwise every ``PLAIN_EVERY_S``."""

    def __init__(
        self, console: Console, update: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._update, self._clock = console, update, clock
        self._started = self._printed = clock()
        self._tokens_at_start: int | None = None
        """Tokens at the first call: existing ones, and those made while the source was being opened."""

    def __call__(self, done: int, expected: float | None) -> None:
        now = self._clock()
        if self._tokens_at_start is None:
            self._tokens_at_start, self._started, self._printed = done, now, now
        line = self.line(done, expected)
        if self._console.is_terminal:
            self._update(line)
        elif now - self._printed >= PLAIN_EVERY_S:
            self._printed = now
            self._console.print(line, soft_wrap=True)

    def line(self, done: int, expected: float | None) -> str:
        elapsed = self._clock() - self._started
        parts = [f"{done:,} tokens", f"{clock_time(elapsed)} elapsed"]
        pace = Pace(done - (self._tokens_at_start or 0), elapsed)
        if speed := pace.per_second:
            parts.insert(1, f"{speed:,.0f} tokens/s")
            if expected:
                parts.append(f"about {clock_time(pace.seconds_for(expected - done))} left")
        return " | ".join(parts)

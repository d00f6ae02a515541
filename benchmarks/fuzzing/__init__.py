"""Runs mutated files through a target and counts the outcomes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.fuzzing.mutations import mutated
from benchmarks.fuzzing.targets import Target
from search_spaces.errors import InvalidInput

HANG_S = 20
"""Longer than reading any of these files takes, even on a busy machine."""


@dataclass
class Tally:
    inputs: int = 0
    refused: int = 0
    """Inputs that were rejected with a message; the others were read."""


class Hang(Exception):
    """Reading an input took longer than ``HANG_S``."""


def fuzz(target: Target, examples: int, start: int) -> Tally:
    """Runs ``examples`` mutated files, which depend only on ``start``, through ``target``.

    Raises:
        Exception: an input caused something other than a clear message; hypothesis has minimized that input.
    """
    tally = Tally()

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(content=mutated(target.valid))
    def each(content: bytes) -> None:
        tally.inputs += 1
        if refusal := refused(target, content):
            tally.refused += 1
            assert refusal.field, f"names no field: {refusal}"
            assert refusal.remedy, f"names no remedy: {refusal}"
            assert len(str(refusal)) < 4000, "nobody reads that"

    each()
    return tally


def refused(target: Target, content: bytes) -> InvalidInput | None:
    with not_for_ever():
        try:
            target.read(content)
        except InvalidInput as refusal:
            return refusal
    return None


@contextmanager
def not_for_ever() -> Iterator[None]:
    def hang(signum: int, frame: FrameType | None) -> None:
        raise Hang(f"still at it after {HANG_S} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

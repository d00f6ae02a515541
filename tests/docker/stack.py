"""``docker/local_stack.py`` for tests: starts all services, or skips the test if Postgres is not installed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from local_stack import Stack, postgres_program

__all__ = ["Stack", "started"]


@contextmanager
def started(workers: int) -> Iterator[Stack]:
    try:
        postgres_program("initdb")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(prefix="oec-") as folder:
        stack = Stack(Path(folder))
        with stack.all(workers):
            yield stack

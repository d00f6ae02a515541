"""Processes that compute beside the one that makes a report."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import active_children, get_context
from typing import Any

Submit = Callable[..., Callable[[], Any]]
"""Starts a function, given by module and name, with arguments; returns a function that waits for its result."""


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def process_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes: forking one that has threads, such as those of Ray, may deadlock.

    On exit its processes end at once, because nobody needs what they have not finished.
    """
    others = active_children()
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_ignore_interrupt)
    try:
        yield pool
    finally:
        for process in active_children():
            if process not in others:
                process.terminate()
        pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches every process of the terminal; this one ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def call(module: str, name: str, *arguments: Any, **options: Any) -> Any:
    """Import a module and call a function of it. Only the process that runs this needs the module."""
    return getattr(import_module(module), name)(*arguments, **options)


def here(module: str, name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """A ``Submit`` that runs the function in this process, when its result is needed."""
    return lambda: call(module, name, *arguments, **options)


def import_without(module: str, packages: Iterable[str]) -> None:
    """Import a module as if some packages were not installed, for libraries that import whatever is."""
    hidden = [name for name in packages if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # makes an import fail
    import_module(module)
    for name in hidden:
        del sys.modules[name]


@contextmanager
def beside(module: str, without: Collection[str] = ()) -> Iterator[Submit]:
    """A ``Submit`` that runs functions in another process, which imports ``module`` right away.

    With only one core it runs them in this process.

    Args:
        without: see ``import_without``.
    """
    if usable_cores() < 2:
        yield here
        return
    with process_pool(1) as pool:
        pool.submit(import_without, module, without)
        yield lambda *arguments, **options: pool.submit(call, *arguments, **options).result

"""Processes that train one tiny cell and are killed at a chosen moment while they write its checkpoints."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from search_spaces.keep_weights import NO_WEIGHTS, KeepWeights
from search_spaces.record import CellResult, Row
from tests.trainers import tiny
from trainers.loop import Trainer
from trainers.world import World

INTERVALS = {"evaluate_every": 4, "checkpoint_every": 2}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])  # imports torch once, in a process without threads


def train(
    folder: Path, tokens: Path, rows: list[Row] | None = None, keep_weights: KeepWeights = NO_WEIGHTS
) -> CellResult:
    torch.set_num_threads(1)
    trainer = Trainer(World.single(), tiny.opened(tokens))
    told = (rows if rows is not None else []).append
    return trainer.run(tiny.cell(), folder, **INTERVALS, keep_weights=keep_weights, on_row=told)


def train_until(
    folder: Path, tokens: Path, operation: int, kind: str = "checkpoints", keep_weights: KeepWeights = NO_WEIGHTS
) -> None:
    """Trains, and sends itself SIGKILL before its ``operation``-th operation on a checkpoint or weights file: an open,
    rename, listing or removal. Counting starts with the first operation on a file of step 6."""
    done = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        path = str(arguments[0]) if event.startswith(("open", "os.")) and arguments else ""
        if kind in path and (done or "step-00000006" in path):
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train(folder, tokens, keep_weights=keep_weights)


def train_within(folder: Path, tokens: Path, file_bytes: int) -> None:
    """Trains under a file size limit: the kernel kills the process in the middle of a write beyond ``file_bytes``."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores this signal by default
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    train(folder, tokens)


def exit_code(target: Any, *arguments: object) -> int:
    """Runs ``target`` in its own process and returns the exit code."""
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the process neither ended nor died within five minutes"
    return process.exitcode

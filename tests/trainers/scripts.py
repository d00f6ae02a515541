"""Scripts that are trained as commands, and the context of a trial in a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from search_spaces.cell import ForeignCell
from search_spaces.record import CellResult
from search_spaces.trainer import TrainerSpec
from trainers.command.trial import CommandTrial
from trainers.protocol import Checkpoint, Context, never_stop

CELL = ForeignCell(trainer="digest", name="train.py", kind="command", lr=0.1, seed=1)
QUADRATIC = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()
x, start, state = 1.0 + options.seed, 0, options.out / "state.json"
if options.resume:
    x, start = json.loads(state.read_text())
with (options.out / "log.jsonl").open("a") as log:
    for step in range(start, 11):
        state.write_text(json.dumps([x, step]))
        print(json.dumps({"step": step, "val": {"loss": x * x}}), file=log, flush=True)
        x -= 2 * options.lr * x
print("done")
"""
"""Gradient descent on x ** 2: diverges above lr = 1."""


@dataclass
class Reported:
    """Records what a trial reports to the worker loop."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def __call__(self, step: int, /, **metrics: float) -> None:
        self.rows.append((step, metrics))


def context(folder: Path, **changes: Any) -> Context:
    return Context(**({"device": torch.device("cpu"), "folder": folder} | changes))


def command(folder: Path, script: str = QUADRATIC, arguments: str = "", **fields: Any) -> TrainerSpec:
    """Returns a trainer that runs ``script`` with this Python; by default with quadratic's arguments and metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(script)
    arguments = arguments or "--lr {lr} --seed {seed} --out {folder}"
    metrics = {"file": "{folder}/log.jsonl", "val_loss": "val/loss"}
    defaults = {"command": f"{sys.executable} -S train.py {arguments}", "metrics": metrics, "directory": str(folder)}
    return TrainerSpec.model_validate(defaults | fields)


def train(
    spec: TrainerSpec,
    folder: Path,
    cell: Any = CELL,
    report: Reported | None = None,
    should_stop: Callable[[], bool] = never_stop,
    **surroundings: Any,
) -> CellResult:
    """Trains one cell with a command, in this process."""
    trial = CommandTrial(spec)
    trial.setup(context(folder.parent, **surroundings))
    return trial.train(cell, report or Reported(), Checkpoint(folder=folder, should_stop=should_stop))

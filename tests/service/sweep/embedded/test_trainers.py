"""Commands and Python objects in warm worker groups on a real Ray cluster; they share the serving loop with our own
trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from search_spaces.cell import ForeignCell
from search_spaces.plan import Plan
from search_spaces.record import CellResult, Row
from search_spaces.study import Study
from service.home.layout import Home
from service.home.location import open_home
from service.sweep.trials import group_config
from service.sweep.worker_group import WarmGroup
from tests.trainers.scripts import QUADRATIC
from trainers.job import Job, result_in
from trainers.protocol import Checkpoint

TRIAL = """
import os
import torch
import torch.distributed as dist

class Trial:
    def setup(self, context):
        self.context, self.cells = context, 0

    def train(self, cell, report, checkpoint):
        self.cells += 1
        if cell.seed == 13:
            raise ValueError("an unlucky seed")
        x = torch.ones(1) * (1 + cell.seed)
        for step in range(1000 if cell.seed == 9 else 11):
            loss = x * x
            dist.all_reduce(loss)
            report(step, val_loss=float(loss) / self.context.size, cells=self.cells, pid=os.getpid())
            if checkpoint.stop_requested():
                return
            x = x - 2 * cell.lr * x
"""


def study(folder: Path, trainer: dict[str, Any], **resources: Any) -> Study:
    content = {"name": "mine", "trainer": trainer, "lrs": [0.1], "resources": resources}
    return Study.validate_fields(content, folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return open_home(tmp_path_factory.mktemp("trainers"))


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    for name, text in {"train.py": QUADRATIC, "mine_trial.py": TRIAL}.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def start(home: Home, embedded: None) -> Iterator[Callable[[Study], WarmGroup]]:
    """Returns a function that starts groups, which are closed after the test."""
    groups: list[WarmGroup] = []

    def started(spec: Study) -> WarmGroup:
        groups.append(WarmGroup(group_config(spec, None, home)))
        return groups[-1]

    yield started
    for group in groups:
        group.close()
        assert not group.alive


def run(group: WarmGroup, home: Home, cell: ForeignCell) -> tuple[CellResult, list[Row]]:
    job = Job(
        cell=cell, checkpoint=Checkpoint(folder=home.cell(cell.id, "mine"), evaluate_every=10, checkpoint_every=10)
    )
    events = [event for events in group.run(job) for event in events]
    result = result_in(events)
    assert result is not None
    return result, [event for event in events if isinstance(event, Row)]


def children_with(word: str) -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [process for process in found if any(word in part for part in process.cmdline())]


def test_commands_one_after_another(start: Callable[[Study], WarmGroup], home: Home, code: Path) -> None:
    command = f"{sys.executable} -S train.py --lr {{lr}} --seed {{seed}} --out {{folder}}"
    metrics = {"file": "{folder}/log.jsonl", "val_loss": "val/loss"}
    spec = study(code, {"command": command, "metrics": metrics})
    group, cell = start(spec), cell_of(spec)
    first, rows = run(group, home, cell)
    assert (first.state, first.l_init, [row.step for row in rows]) == ("finished", 4.0, list(range(11)))
    diverged, _ = run(group, home, cell.model_copy(update={"lr": 2.0}))
    assert diverged.state == "diverged"
    broken, _ = run(group, home, cell.model_copy(update={"seed": "broken"}))  # like an invalid factor
    assert broken.state == "crashed"
    assert "invalid int value: 'broken'" in broken.reason.splitlines()[-1]
    assert not children_with("train.py")


def test_a_python_object_of_two_workers_stays_warm(start: Callable[[Study], WarmGroup], home: Home, code: Path) -> None:
    spec = study(code, {"python": "mine_trial:Trial"}, workers=2)
    group, cell = start(spec), cell_of(spec)
    first, rows = run(group, home, cell)
    assert (first.state, first.l_init, [row.step for row in rows]) == ("finished", 4.0, list(range(11)))
    crashed, _ = run(group, home, cell.model_copy(update={"seed": 13}))
    assert crashed.state == "crashed"
    assert crashed.reason.endswith("ValueError: an unlucky seed\n")
    endless = cell.model_copy(update={"seed": 9})
    events = group.run(
        Job(cell=endless, checkpoint=Checkpoint(folder=home.cell("x"), evaluate_every=1, checkpoint_every=1))
    )
    next(batch for batch in events if batch)
    events.close()  # type: ignore[attr-defined]  # a generator; as when a cell is stopped
    other, later = run(group, home, cell.model_copy(update={"lr": 0.2}))
    assert other.state == "finished"
    assert later[0].metrics["pid"] == rows[0].metrics["pid"]
    assert later[0].metrics["cells"] > 3, "a cell must be retried once"


def cell_of(spec: Study) -> ForeignCell:
    (cell,) = Plan(spec, "digest").cells
    assert isinstance(cell, ForeignCell)
    return cell

"""The ranks of a group stay in step if one of them raises an error: two processes run the group's loop without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from search_spaces.record import CellResult
from tests.trainers.pair import joined
from tests.trainers.scripts import CELL, Reported
from trainers.job import Job
from trainers.protocol import Checkpoint, Context, Report, never_stop
from trainers.ray_worker import Worker


class Unlucky:
    """Raises an error on rank 1 only: in its first setup, and with seed 13 while rank 0 exchanges values."""

    def __init__(self) -> None:
        self.setups = 0

    def setup(self, context: Context) -> None:
        self.setups += 1
        self.rank, self.gather = context.rank, context.gather
        if self.rank == 1 and self.setups == 1:
            raise FileNotFoundError("this node lacks the data")

    def train(self, cell: Any, report: Report, checkpoint: Checkpoint) -> CellResult:
        for step in range(5):
            if (self.rank, cell.seed, step) == (1, 13, 3):
                raise ValueError("an unlucky seed")
            try:
                checkpoint.stop_requested()
            except Exception:
                return CellResult(state="finished", reason="caught what was not its own")
        return CellResult(state="finished", val_loss=float(sum(self.gather(self.rank + 1))))


class Posted:
    """Keeps what rank 0 posts."""

    def __init__(self) -> None:
        self.results: list[CellResult] = []

    def row_poster(self, job: Job) -> Report:
        return Reported()

    def stop_poller(self, job: Job) -> Callable[[], bool]:
        return never_stop

    def post_and_wait(self, job: Job, result: CellResult) -> None:
        self.results.append(result)


def rank_of(rank: int, folder: Path) -> None:
    with joined(rank, folder):

        def gather(value: Any) -> list[Any]:
            values: list[Any] = [None, None]
            dist.all_gather_object(values, value)
            return values

        posted = Posted() if rank == 0 else None
        context = Context(rank=rank, size=2, device=torch.device("cpu"), folder=folder, gather=gather)
        trial = Unlucky()
        worker = Worker(trial, context, posted)  # type: ignore[arg-type]
        for seed in (1, 1, 13, 1):
            cell = CELL.model_copy(update={"seed": seed})
            worker.run(Job(cell=cell, checkpoint=Checkpoint(folder=folder, evaluate_every=1, checkpoint_every=1)))
        if posted:
            found = [(result.state, result.val_loss, result.reason) for result in posted.results]
            (folder / "found.json").write_text(json.dumps([trial.setups, found]))


def test_a_failure_on_one_rank_leaves_the_ranks_in_step(tmp_path: Path) -> None:
    mp.spawn(rank_of, (tmp_path,), nprocs=2)
    setups, (broken, good, unlucky, again) = json.loads((tmp_path / "found.json").read_text())
    assert setups == 2, "rank 0 must be set up again together with rank 1, but not before every cell"
    assert broken[0] == unlucky[0] == "crashed"
    assert broken[2].endswith("FileNotFoundError: this node lacks the data\n")
    assert unlucky[2].endswith("ValueError: an unlucky seed\n")
    assert good == again == ["finished", 3.0, ""]

"""A warm worker group on a real Ray cluster: cells run one after another in the same processes, however a cell ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
from ray._private.worker import get_dashboard_url

from search_spaces.cell import Cell
from search_spaces.plan import Plan
from search_spaces.record import CellResult, Row
from search_spaces.study import Study
from service.home.data import prepare_tokens
from service.home.layout import Home
from service.home.location import open_home
from service.sweep.worker_group import GroupConfig, WarmGroup
from trainers.data import TokenFiles, Tokens
from trainers.job import Job, result_in
from trainers.oec_trial import OecTrial
from trainers.protocol import Checkpoint

STUDY = Study.load("smoke")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return open_home(tmp_path_factory.mktemp("groups"))


@pytest.fixture(scope="module")
def tokens(home: Home) -> Tokens:
    return prepare_tokens(STUDY, home, print)


@pytest.fixture(scope="module")
def group(home: Home, tokens: Tokens, embedded: None) -> Iterator[WarmGroup]:
    """Yields a group of two warm DDP workers."""
    config = GroupConfig(
        trial=OecTrial(TokenFiles.of(tokens), micro_batch_memo=home.micro_batches),
        resources=STUDY.resources,
        processes=STUDY.resources.workers,
        study_folder=home.study(STUDY.name),
        ray_folder=home.ray,
    )
    group = WarmGroup(config)
    assert done(group, job(home, cell(tokens, lr=9e-3))).state == "finished"
    yield group
    group.close()
    assert not group.alive, "the group is still alive after it was closed"


def cell(tokens: Tokens, **changes: Any) -> Cell:
    return Plan(STUDY, tokens.digest).cells[0].model_copy(update=changes)


def job(home: Home, cell: Cell, folder: str = "") -> Job:
    return Job(
        cell=cell, checkpoint=Checkpoint(folder=home.cell(folder or cell.id), evaluate_every=10, checkpoint_every=5)
    )


def done(group: WarmGroup, job: Job) -> CellResult:
    result = result_in([event for events in group.run(job) for event in events])
    assert result is not None
    return result


def workers() -> set[int]:
    """Returns the process ids of this cluster's Ray Train workers."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "RayTrainWorker" in "".join(child.cmdline()[:1])}


def test_an_embedded_cluster_listens_on_loopback_and_requires_the_token(group: WarmGroup) -> None:
    """The dashboard accepts jobs, so it must only respond to requests with this user's token."""
    address = get_dashboard_url()
    assert address.startswith("127.0.0.1:")
    with pytest.raises(HTTPError) as refused:
        urlopen(f"http://{address}/api/jobs/", timeout=30)
    assert refused.value.code == 401
    token = os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / ".ray" / "auth_token").read_text()
    asked = Request(f"http://{address}/api/jobs/", headers={"Authorization": f"Bearer {token.strip()}"})
    with urlopen(asked, timeout=30) as answer:
        assert answer.status == 200


def test_cells_one_after_another_in_the_same_processes(group: WarmGroup, home: Home, tokens: Tokens) -> None:
    before = workers()
    first = done(group, job(home, cell(tokens)))
    second = done(group, job(home, cell(tokens, lr=2e-3)))
    again = done(group, job(home, cell(tokens), folder="again"))
    assert len(before) == 2
    assert workers() == before
    assert [result.state for result in (first, second, again)] == ["finished"] * 3
    assert again.val_loss == first.val_loss, "the same cell must give bit-identical results"
    assert second.val_loss != first.val_loss


def test_divergence_is_a_result_and_the_group_stays_warm(group: WarmGroup, home: Home, tokens: Tokens) -> None:
    before = workers()
    diverged = done(group, job(home, cell(tokens, lr=1e30)))
    assert diverged.state == "diverged"
    assert (diverged.steps or 0) < 20, "a loss that is not finite must end the cell at once"
    assert "not finite" in diverged.reason or "nan" in diverged.reason or "inf" in diverged.reason
    assert done(group, job(home, cell(tokens, lr=3e-3))).state == "finished"
    assert workers() == before


def test_an_exception_on_all_ranks_is_the_result_of_the_cell(group: WarmGroup, home: Home, tokens: Tokens) -> None:
    before = workers()
    crashed = done(group, job(home, cell(tokens, data="other tokens")))
    assert crashed.state == "crashed"
    assert "other tokens" in crashed.reason
    assert "Traceback" in crashed.reason
    assert done(group, job(home, cell(tokens, lr=4e-3))).state == "finished"
    assert workers() == before


def test_a_cell_that_nobody_waits_for_is_dropped(group: WarmGroup, home: Home, tokens: Tokens) -> None:
    endless = STUDY.training.model_copy(update={"steps": 1_000_000})
    events = group.run(job(home, cell(tokens, training=endless)))
    assert isinstance(next(batch[0] for batch in events if batch), Row)
    before = workers()
    events.close()  # type: ignore[attr-defined]
    assert done(group, job(home, cell(tokens, lr=5e-3))).state == "finished"
    assert workers() == before

"""The mailbox: how often the group of a cell may die, and the order of events, on an event loop like its actor's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from search_spaces.plan import Plan
from search_spaces.record import CellResult, Row
from search_spaces.study import Study
from service.sweep.mailbox import Mailbox
from trainers.job import Job
from trainers.protocol import Checkpoint

MailboxClass = Mailbox.__ray_metadata__.modified_class  # type: ignore[attr-defined]
CELL = Plan(Study.load("smoke"), "data").cells[0]
JOB = Job(cell=CELL, checkpoint=Checkpoint(folder=Path("cell"), evaluate_every=10, checkpoint_every=5))


@pytest.mark.fault("as many failures as max_failures")
@pytest.mark.parametrize("max_failures", [1, 2, 3])
def test_a_cell_whose_group_died_too_often_is_crashed(max_failures: int) -> None:
    async def dies() -> None:
        mailbox = MailboxClass(max_failures)
        await mailbox.started()
        await mailbox.put(JOB)
        for _ in range(max_failures):
            assert await mailbox.take(0.0) == JOB
            assert await mailbox.events(0.0) == []
            await mailbox.started()  # a new group replaces the one that died
        (end,) = await mailbox.events(0.0)
        assert end.state == "crashed"
        times = f", failure {max_failures} of this cell" if max_failures > 1 else ""
        assert end.reason.startswith(f"its worker group died{times}: ")
        assert await mailbox.take(0.0) is None
        await mailbox.put(JOB)
        assert await mailbox.take(0.0) == JOB, "failures of one cell must not count for the next"

    asyncio.run(dies())


def test_events_arrive_once_and_in_order_however_fast_they_are() -> None:
    """Rows arrive in bursts, as from a command whose entire log is read at once, while the trial takes what is
    available."""

    async def burst() -> list[int]:
        mailbox, found = MailboxClass(1), list[int]()
        await mailbox.put(JOB)
        posts = [mailbox.post(CELL.id, [Row(step, 0.0, {})]) for step in range(200)]
        posts.append(mailbox.post(CELL.id, [CellResult(state="finished")]))

        async def take() -> None:
            while True:
                for event in await mailbox.events(1.0):
                    if isinstance(event, CellResult):
                        return
                    found.append(event.step)

        await asyncio.gather(take(), *posts)
        return found

    assert asyncio.run(burst()) == list(range(200))

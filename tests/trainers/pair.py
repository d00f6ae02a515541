"""One of the two processes of a DDP test."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from trainers.world import World

CPU = torch.device("cpu")


@contextmanager
def joined(
    rank: int, folder: Path, device: torch.device = CPU, share: float = 1.0, timeout_s: int = 60
) -> Iterator[World]:
    """Yields the world of process ``rank``. The two processes rendezvous at a file in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    yield World(rank, 2, device, share)
    dist.destroy_process_group()

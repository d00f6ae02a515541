"""The group of processes that train one cell together.

The caller initializes the process group (gloo on CPUs, NCCL on accelerators). With a single process there is no group,
and every collective here returns its input.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    memory_share: float = 1.0
    """Share of the device's memory that this process may use; small cells can share a device."""

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> World:
        return cls(rank=0, size=1, device=torch.device(device))

    @property
    def is_rank0(self) -> bool:
        """Rank 0 is the one that reads and writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Replaces ``tensor`` in place by its sum over all ranks, and returns it."""
        self.sum_async(tensor)()
        return tensor

    def sum_async(self, tensor: Tensor) -> Callable[[], object]:
        """Starts ``sum`` and returns a function that waits for it."""
        if self.size == 1:
            return lambda: None
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        return lambda: work.wait()

    def max(self, tensor: Tensor) -> Tensor:
        """Replaces ``tensor`` in place by its elementwise maximum over all ranks, and returns it."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def min(self, value: int) -> int:
        """Returns the minimum of ``value`` over all ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Replaces ``tensor`` in place by rank 0's, and returns it."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def run_on_rank0(self, action: Callable[[], object]) -> None:
        """Calls ``action`` on rank 0 only. If it raises there, every rank raises, so that all ranks stay in step."""
        error: Exception | None = None

        def attempt() -> str | None:
            nonlocal error
            try:
                action()
            except Exception as raised:
                error = raised
                return f"{type(raised).__name__}: {raised}"
            return None

        if failure := self.broadcast_object(attempt):
            raise error or RuntimeError(f"rank 0 failed: {failure}")

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Calls ``make`` on rank 0 only and returns its result, which must be a JSON value, on every rank.

        JSON rather than pickle: these are a few dozen bytes, and reading them cannot run code.
        """
        if self.size == 1:
            return make()
        text = json.dumps(make()).encode() if self.is_rank0 else b""
        length = self.broadcast(torch.tensor([len(text)], device=self.device))
        content = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.is_rank0:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        received: T = json.loads(bytes(self.broadcast(content).tolist()))
        return received

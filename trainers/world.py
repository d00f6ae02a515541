"""The processes that train one cell together.

The process group is initialised by whoever starts the processes (gloo on processors, NCCL on accelerators); with
one process there is none, and every helper here is the identity.
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
    share: float = 1.0
    """Of the device's memory: small cells can have one together."""

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> World:
        return cls(rank=0, size=1, device=torch.device(device))

    @property
    def leads(self) -> bool:
        """Whether this process is the one that reads and writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor``, replaced in place by its sum over all processes."""
        self.sum_async(tensor)()
        return tensor

    def sum_async(self, tensor: Tensor) -> Callable[[], object]:
        """Starts ``sum`` and returns the function that waits for it."""
        if self.size == 1:
            return lambda: None
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        return lambda: work.wait()

    def min(self, value: int) -> int:
        """The smallest ``value`` of all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """``tensor``, replaced in place by rank 0's."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def lead(self, act: Callable[[], object]) -> None:
        """Calls ``act`` on rank 0 alone. What it raises there is raised on every rank, so that all stay in step."""
        error: Exception | None = None

        def attempt() -> str | None:
            nonlocal error
            try:
                act()
            except Exception as raised:
                error = raised
                return f"{type(raised).__name__}: {raised}"
            return None

        if failure := self.agree(attempt):
            raise error or RuntimeError(f"rank 0 could not go on: {failure}")

    def agree(self, decide: Callable[[], T]) -> T:
        """What ``decide`` returns on rank 0, on every rank; it must survive a trip through JSON.

        Only rank 0 calls ``decide``. JSON and not pickle: a few dozen bytes, and nothing that can run.
        """
        if self.size == 1:
            return decide()
        text = json.dumps(decide()).encode() if self.leads else b""
        length = self.broadcast(torch.tensor([len(text)], device=self.device))
        content = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.leads:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        decided: T = json.loads(bytes(self.broadcast(content).tolist()))
        return decided

"""GPU work that is recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class CapturedGraph:
    """GPU work as a CUDA graph; calling it replays the work on the same memory.

    The tensors that the work reads and writes must stay at their addresses, and it must not copy anything to the host.
    """

    def __init__(self, work: Callable[[], Tensor], pool: Any) -> None:
        """Calls ``work`` twice before the capture, so that compilation and other one-time work is not captured.

        Args:
            pool: handle of the memory that this graph shares with others.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Capture only this thread's work: NCCL's threads keep querying their events in the meantime.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.result = work()

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self.result

"""Resource use of rank 0's process, under the names that MLflow's UI shows as system metrics."""

from __future__ import annotations

import resource
import time

import torch

KEYS = ("system/process_cpu_percent", "system/process_memory_megabytes", "system/gpu_memory_megabytes")


class Usage:
    """CPU use since the last sample; peak memory since the process started."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def sample(self) -> dict[str, float]:
        """Returns a value for each of ``KEYS``; the last one only with a GPU. 100 % is one core, summed over threads;
        memory is in units of 2**20 bytes."""
        wall, cpu = time.perf_counter(), time.process_time()
        percent = 100 * (cpu - self._cpu) / max(wall - self._wall, 1e-9)
        self._wall, self._cpu = wall, cpu
        values = [percent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10]
        if torch.cuda.is_available():
            values.append(torch.cuda.max_memory_allocated() / 2**20)
        return dict(zip(KEYS, values, strict=False))

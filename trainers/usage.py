"""What the process of rank 0 takes of its machine, as MLflow's UI shows under system metrics."""

from __future__ import annotations

import resource
import time

import torch

KEYS = ("system/process_cpu_percent", "system/process_memory_megabytes", "system/gpu_memory_megabytes")


class Usage:
    """Between two looks: processor time, and the most memory that was in use since the process began."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def look(self) -> dict[str, float]:
        """``KEYS``, the last one where there is an accelerator. 100 % is one core, all threads together; memory is in
        units of 2**20 bytes."""
        wall, cpu = time.perf_counter(), time.process_time()
        percent = 100 * (cpu - self._cpu) / max(wall - self._wall, 1e-9)
        self._wall, self._cpu = wall, cpu
        found = [percent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10]
        if torch.cuda.is_available():
            found.append(torch.cuda.max_memory_allocated() / 2**20)
        return dict(zip(KEYS, found, strict=False))

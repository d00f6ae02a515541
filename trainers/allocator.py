"""The memory of a training process: it reuses what a step frees, and stays within its share of a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainers.world import World

CUDA_CONTEXT_BYTES = 512 * 2**20
"""Approximate GPU memory that each process uses outside of PyTorch: kernels and cuBLAS."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameter numbers from glibc's ``malloc.h``."""


def keep_freed_memory() -> bool:
    """Configures glibc to reuse freed blocks of every size for the rest of this process. Returns whether it worked.

    By default glibc maps a large block again at each allocation and returns the end of its heap to the kernel, so that
    every step faults the same pages in again: 92,000 page faults a step at 16M, an eighth of the step's time. A C
    library without ``mallopt`` is only slower.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    done = [mallopt(name, value) == 1 for name, value in settings]
    return all(done)


def limit_gpu_memory(world: World) -> None:
    """Limits a process that has a share of a GPU to that share, so that it runs out of memory there instead of taking
    memory from the other processes. The memory of its CUDA context counts toward the share."""
    if world.device.type == "cuda" and world.memory_share < 1:
        _set_memory_fraction(world)


@contextmanager
def reserve_gpu_memory(world: World, share: float) -> Iterator[None]:
    """While active, this process runs out of memory when only ``share`` of its GPU memory is left."""
    if world.device.type != "cuda":
        yield
        return
    _set_memory_fraction(world, 1 - share)
    try:
        yield
    finally:
        _set_memory_fraction(world)


def _set_memory_fraction(world: World, part: float = 1.0) -> None:
    """Limits PyTorch to ``part`` of the GPU memory that this process may use."""
    total = torch.cuda.get_device_properties(world.device).total_memory
    fraction = pytorch_fraction(world.memory_share, total) if world.memory_share < 1 else 1.0
    torch.cuda.set_per_process_memory_fraction(fraction * part, world.device)


def pytorch_fraction(share: float, total_bytes: int) -> float:
    """Returns the fraction of a GPU's memory that PyTorch may use in a process that has a share of the GPU: the share
    without the CUDA context, but at least a tenth of the share."""
    return max(share - CUDA_CONTEXT_BYTES / total_bytes, share / 10)

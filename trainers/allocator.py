"""The memory of a training process: what a step frees stays for the next step, and a shared device is shared."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainers.world import World

CUDA_CONTEXT = 512 * 2**20
"""Bytes of a device that a process takes beside PyTorch's, about: kernels and cuBLAS."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Names and numbers of glibc's ``malloc.h``."""


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed blocks of every size, for the rest of this process; whether it did.

    By default it maps large blocks anew at each allocation and gives the end of its heap back, so that every step
    pays the kernel for the same pages again: 92,000 page faults a step at 16M, an eighth of the step's time. False
    where there is no ``mallopt`` (another C library): nothing but time is lost.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    done = [mallopt(name, value) == 1 for name, value in settings]
    return all(done)


def keep_to_share(world: World) -> None:
    """Makes a process that has a share of an accelerator run out of memory at that share, and not at the expense of the
    other processes there. What CUDA itself takes, for each process, comes out of the share."""
    if world.device.type == "cuda" and world.share < 1:
        _limit(world)


@contextmanager
def sparing(world: World, share: float) -> Iterator[None]:
    """Meanwhile this process runs out of its device's memory when ``share`` of what it may take is left."""
    if world.device.type != "cuda":
        yield
        return
    _limit(world, 1 - share)
    try:
        yield
    finally:
        _limit(world)


def _limit(world: World, part: float = 1.0) -> None:
    """Leaves a process ``part`` of what it may take of its device."""
    total = torch.cuda.get_device_properties(world.device).total_memory
    mine = fraction_of(world.share, total) if world.share < 1 else 1.0
    torch.cuda.set_per_process_memory_fraction(mine * part, world.device)


def fraction_of(share: float, total_bytes: int) -> float:
    """The part of a device's memory that PyTorch may take of a share, at least a tenth of it."""
    return max(share - CUDA_CONTEXT / total_bytes, share / 10)

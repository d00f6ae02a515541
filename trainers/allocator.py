"""The C allocator of a training process: memory that a step frees stays for the next step."""

from __future__ import annotations

import ctypes

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

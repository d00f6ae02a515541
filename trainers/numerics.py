"""Process-wide floating-point settings: precision of float32 products, determinism, and denormal numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from search_spaces.training_spec import TrainingSpec

CUBLAS_WORKSPACE = ":4096:8"
"""Makes cuBLAS deterministic (its documentation, "Results reproducibility")."""


@contextmanager
def numerics_for(spec: TrainingSpec, device: torch.device) -> Iterator[None]:
    """Sets the precision and the determinism that ``spec`` requests. It has no effect on a CPU.

    Raises:
        RuntimeError: a deterministic run reaches an operator that has no deterministic kernel.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)  # cuBLAS reads it at the first product
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("high" if spec.precision == "tf32" else "highest")
    torch.use_deterministic_algorithms(spec.deterministic)
    # No code here reads uninitialized memory.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1])


@contextmanager
def flush_denormals() -> Iterator[None]:
    """While active, this thread and the threads that PyTorch starts for it treat numbers below 1.2e-38 as zeros.

    A diverging model produces denormals by the million, because the softmax of a logit 90 below the largest is one. A
    CPU takes 4 to 8 times as long to compute them, and again in each pass that reads them. At a learning rate of 1 a
    tiny step takes 58 to 65 ms with them and 45 to 47 ms without. The loss is the same: a float32 sum with any normal
    term does not change.

    On exit this thread has PyTorch's default, not its previous setting, which PyTorch does not report. There is no
    effect on accelerators, or on CPUs without support.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)

"""How an accelerator computes: the precision of float32 products, and whether a kernel gives the same bits twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from search_spaces.cell import TrainingSpec

CUBLAS_WORKSPACE = ":4096:8"
"""With which cuBLAS is deterministic (its documentation, "Results reproducibility")."""


@contextmanager
def arithmetic_of(spec: TrainingSpec, device: torch.device) -> Iterator[None]:
    """The settings of PyTorch that ``spec`` asks for, which are of the whole process. Processors have none of them.

    Raises:
        RuntimeError: from within, where a deterministic run meets an operator that has no such kernel.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)  # read when the process first multiplies
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("high" if spec.precision == "tf32" else "highest")
    torch.use_deterministic_algorithms(spec.deterministic)
    # Nothing here reads memory that it did not write.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1])

from __future__ import annotations

import subprocess
import sys

import pytest

from trainers.allocator import CUDA_CONTEXT_BYTES, pytorch_fraction

FAULTS = """
import resource, torch
from trainers.allocator import keep_freed_memory
if {keep} and not keep_freed_memory():
    raise SystemExit("no mallopt")
def step(): torch.empty(16 * 2**20).fill_(1.0)
for _ in range(20): step()  # the heap finds its size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    """Of ten times 64 MB, taken and freed in a fresh process: the allocator is the whole process's."""
    program = FAULTS.format(keep=keep)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    if "no mallopt" in ran.stderr:
        pytest.skip("this C library has no mallopt")
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_freed_memory_is_taken_again_without_asking_the_kernel():
    kept, default = page_faults(keep=True), page_faults(keep=False)
    assert kept < 500 < 5_000 < default, "glibc maps large blocks anew; see trainers.allocator"


@pytest.mark.parametrize("gigabytes", [8, 24, 80])
@pytest.mark.parametrize("cells", [2, 4, 8])
def test_cells_on_one_device_take_no_more_than_it_has(cells: int, gigabytes: int) -> None:
    """What PyTorch may take, and CUDA's own for every process, as far as there is room for that."""
    total = gigabytes * 2**30
    each = pytorch_fraction(1 / cells, total) * total
    assert each >= total / cells / 10
    if total / cells > CUDA_CONTEXT_BYTES / 0.9:
        assert cells * (each + CUDA_CONTEXT_BYTES) <= total * (1 + 1e-9)

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from trainers.allocator import CUDA_CONTEXT_BYTES, limit_gpu_memory, pytorch_fraction, reserve_gpu_memory
from trainers.world import World

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
    """Returns the page faults of allocating and freeing 64 MB ten times in a fresh process, since the setting is
    global."""
    program = FAULTS.format(keep=keep)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    if "no mallopt" in ran.stderr:
        pytest.skip("this C library has no mallopt")
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_freed_memory_is_reused_without_the_kernel():
    kept, default = page_faults(keep=True), page_faults(keep=False)
    assert kept < 500 < 5_000 < default, (
        "glibc requests large blocks from the kernel every time; see trainers.allocator"
    )


@pytest.mark.parametrize("gigabytes", [8, 24, 80])
@pytest.mark.parametrize("cells", [2, 4, 8])
def test_cells_on_one_device_use_no_more_memory_than_it_has(cells: int, gigabytes: int) -> None:
    """The sum counts PyTorch's limit and the CUDA context of every process, provided there is room for the contexts."""
    total = gigabytes * 2**30
    each = pytorch_fraction(1 / cells, total) * total
    assert each >= total / cells / 10
    if total / cells > CUDA_CONTEXT_BYTES / 0.9:
        assert cells * (each + CUDA_CONTEXT_BYTES) <= total * (1 + 1e-9)


TOTAL_BYTES = 80 * 2**30
CUDA = torch.device("cuda", 1)


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, torch.device]]:
    """Returns the limits that PyTorch is given, without a GPU. ``tests/cuda/test_run.py`` allocates on a real one."""
    given: list[tuple[float, torch.device]] = []

    class Properties:
        total_memory = TOTAL_BYTES

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *arguments: given.append(arguments))
    return given


def test_a_shared_gpu_is_limited_to_the_share_without_the_context(
    fractions: list[tuple[float, torch.device]],
) -> None:
    limit_gpu_memory(World(0, 1, CUDA, 0.25))
    ((fraction, device),) = fractions
    assert device == CUDA
    assert fraction * TOTAL_BYTES == pytest.approx(0.25 * TOTAL_BYTES - CUDA_CONTEXT_BYTES)


@pytest.mark.parametrize("world", [World(0, 1, CUDA), World.single(), World(0, 1, torch.device("cpu"), 0.25)], ids=str)
def test_a_whole_gpu_and_a_cpu_have_no_limit(world: World, fractions: list[tuple[float, torch.device]]) -> None:
    limit_gpu_memory(world)
    assert fractions == []


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_reserve_is_taken_from_the_share_and_returned(
    share: float, fractions: list[tuple[float, torch.device]]
) -> None:
    whole = pytorch_fraction(share, TOTAL_BYTES) if share < 1 else 1.0
    try:
        with reserve_gpu_memory(World(0, 1, CUDA, share), 0.1):
            assert fractions == [(pytest.approx(0.9 * whole), CUDA)]
            raise torch.OutOfMemoryError
    except torch.OutOfMemoryError:
        assert fractions[1:] == [(pytest.approx(whole), CUDA)]
    else:
        pytest.fail("the error was suppressed")

"""The micro batch: the largest part of a local batch that fits into memory at once."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from trainers.allocator import reserve_gpu_memory
from trainers.engine import Engine
from trainers.storage.memo import load_memo, save_memo
from trainers.world import World

MAX_SAVED_SHARE = 0.25
"""Share of a CPU's free memory that the saved activations may use; the rest is for their gradients, temporaries, and
fragmentation."""

RESERVED_SHARE = 0.1
"""Share of an accelerator's memory that a step must leave free: for evaluations, diagnostics, fragmentation, and what a
compiled step uses beyond the eager step that is tried."""


def choose(engine: Engine, local_batch: int, memo: Path | None) -> int:
    """Returns the largest divisor of ``local_batch`` that fits on every rank. ``memo`` remembers it for each shape.

    An accelerator tries sizes from the whole batch down, until a step fits into this process's share of the device
    (``trainers.allocator``) with ``RESERVED_SHARE`` of it left. For a CPU the size is estimated from what autograd
    saves for one sequence, because a process that runs out of memory on a CPU is killed instead of raising an error.

    Raises:
        torch.OutOfMemoryError: not even one sequence fits.
    """
    world = engine.world
    key = f"{engine.key} method={engine.cell.method} batch={local_batch} device={_device_name(world)}"
    key += f" workers={world.size}"
    key += f" share={world.memory_share:g}" if world.memory_share < 1 else ""
    known: int | None = world.broadcast_object(lambda: load_memo(memo).get(key) if memo else None)
    if known is not None and local_batch % known == 0:
        return known
    divisors = [n for n in range(local_batch, 0, -1) if local_batch % n == 0]
    mine = _try_sizes(engine, divisors) if world.device.type == "cuda" else _estimate_size(engine, divisors)
    size = world.min(mine)  # 0 if any rank has no room, so that every rank raises
    if not size:
        sequence = f"{engine.cell.training.sequence_length} tokens at {engine.cell.scale}"
        problem = f"not even one sequence of {sequence} fits into the memory of every worker's device"
        remedy = "shorten training.sequence_length, choose a smaller scale, or raise resources.gpus_per_worker"
        raise torch.OutOfMemoryError(f"{problem}; {remedy}")
    if memo is not None:
        world.run_on_rank0(lambda: save_memo(memo, load_memo(memo) | {key: size}))
    return size


def _device_name(world: World) -> str:
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type


def _try_sizes(engine: Engine, sizes: list[int]) -> int:
    """Returns the first of ``sizes`` with which a step fits into memory, or 0 if none does."""
    engine.programs.clear()  # captured steps of other kinds hold memory; they are captured again when needed
    single = engine.world.size == 1  # a warm-up of several ranks is collective, and one of them may run out of memory
    with reserve_gpu_memory(engine.world, RESERVED_SHARE):
        for size in sizes:
            try:
                engine.dry_run_step(size)
                if single:
                    engine.warm_up(size)
                return size
            except torch.OutOfMemoryError:
                engine.optimizer.zero_grad()
                engine.optimizer.halted.zero_()
            torch.cuda.empty_cache()
    return 0


def _estimate_size(engine: Engine, sizes: list[int]) -> int:
    room = MAX_SAVED_SHARE * available_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", engine.world.size))
    per_sequence = saved_bytes(engine)
    return next((size for size in sizes if size * per_sequence <= room), 1)


def saved_bytes(engine: Engine) -> int:
    """Returns how many bytes autograd saves between the forward and the backward pass for each additional sequence.

    This excludes what exists once, such as the gradient of E, which the head computes in its forward pass.
    """
    return _saved_bytes_for(engine, 2) - _saved_bytes_for(engine, 1)


def _saved_bytes_for(engine: Engine, sequences: int) -> int:
    own = {p.untyped_storage().data_ptr() for p in engine.optimizer.parameters}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    T = engine.cell.training.sequence_length
    tokens_BU = torch.zeros(sequences, T + 1, dtype=torch.int64, device=engine.world.device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        engine.objective.eager(tokens_BU, engine.cell.method, engine.gamma)
    return sum(storages.values())


def available_bytes() -> int:
    """Returns how much memory this process could still use: on the machine, or in its container if that is less."""
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        room = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        room = min(room, int(text) - int(used.read_text()))
    return max(room, 0)

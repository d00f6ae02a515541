"""The micro batch: the largest part of a local batch that fits into memory at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from trainers.allocator import sparing
from trainers.engine import Engine
from trainers.storage.files import write_atomically
from trainers.world import World

SAVED_SHARE = 0.25
"""Share of the free memory of a processor that the saved activations may take; the rest is for their gradients,
temporaries, and the fragments that they leave."""

SPARE = 0.1
"""Share of an accelerator's memory that a step must leave: for evaluations, diagnostics, fragments, and what a compiled
step holds that an eager one, which is tried out, does not."""


def choose(engine: Engine, local_batch: int, memo: Path | None) -> int:
    """The largest divisor of ``local_batch`` that fits, the same on all ranks; found once a shape, then from ``memo``.

    Accelerators: tried out, from the whole batch down, until it fits into this process's share of a device
    (``trainers.allocator``) with ``SPARE`` of it left. Processors: estimated from what autograd saves for one sequence,
    because a processor that runs out of memory kills the process instead of raising.

    Raises:
        torch.OutOfMemoryError: not even one sequence fits.
    """
    world = engine.world
    key = f"{engine.key} method={engine.cell.method} batch={local_batch} device={_kind(world)} workers={world.size}"
    key += f" share={world.share:g}" if world.share < 1 else ""
    known = world.agree(lambda: _recall(memo).get(key))
    if known is not None and local_batch % known == 0:
        return known
    divisors = [n for n in range(local_batch, 0, -1) if local_batch % n == 0]
    fits = _tried(engine, divisors) if world.device.type == "cuda" else _estimated(engine, divisors)
    found = world.min(fits)  # where one rank has room for none, all of them learn it
    if not found:
        one = f"{engine.cell.training.sequence_length} tokens at {engine.cell.scale}"
        raise torch.OutOfMemoryError(f"not even one sequence of {one} fits into the memory of every worker's device")
    if memo is not None:
        world.lead(lambda: _remember(memo, key, found))
    return found


def _kind(world: World) -> str:
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type


def _tried(engine: Engine, divisors: list[int]) -> int:
    """The first that fits; 0 if none does."""
    engine.programs.clear()  # recorded steps of other kinds hold memory; they are recorded anew when they come again
    alone = engine.world.size == 1  # to settle, several ranks wait for each other
    with sparing(engine.world, SPARE):
        for n in divisors:
            try:
                engine.try_out(n)
                if alone:
                    engine.settle(n)
                return n
            except torch.OutOfMemoryError:
                engine.optimizer.zero_grad()
                engine.optimizer.halted.zero_()
            torch.cuda.empty_cache()
    return 0


def _estimated(engine: Engine, divisors: list[int]) -> int:
    room = SAVED_SHARE * available_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", engine.world.size))
    one = saved_bytes(engine)
    return next((n for n in divisors if n * one <= room), 1)


def saved_bytes(engine: Engine) -> int:
    """Bytes that autograd keeps from the forward to the backward pass of one sequence more.

    What is there once (the gradient of E, which the head forms in its forward pass) is not in it.
    """
    return _saved(engine, 2) - _saved(engine, 1)


def _saved(engine: Engine, sequences: int) -> int:
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
        engine.objective.eager(tokens_BU, engine.cell.method, engine.strength)
    return sum(storages.values())


def available_bytes() -> int:
    """Memory that this process could still take: the machine's, or its container's where that is less."""
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        room = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        room = min(room, int(text) - int(used.read_text()))
    return max(room, 0)


def _recall(memo: Path | None) -> dict[str, int]:
    """What is remembered; nothing where the file is missing or damaged, as it can always be found anew."""
    if memo is None or not memo.is_file():
        return {}
    try:
        content = json.loads(memo.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _remember(memo: Path, key: str, micro_batch: int) -> None:
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(memo, json.dumps(_recall(memo) | {key: micro_batch}, indent=1))

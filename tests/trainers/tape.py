"""A recording of calls that replays them on the same memory, like a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::allclose")
"""Operators whose result the host waits for."""


class HostRead(AssertionError):
    """The host read a value that is on the device."""


class Tape(TorchDispatchMode):
    """Records the calls that are made while it is active.

    A replay repeats only these calls on their memory. It ignores a Python number that has changed since the recording,
    and a tensor that has been replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in READS:
            raise HostRead(func._schema.name)
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, tensors(out)))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, recorded in self.calls:
            for new, old in zip(tensors(func(*args, **kwargs)), recorded, strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]

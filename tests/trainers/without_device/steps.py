"""Takes the steps of an engine on ``cuda`` with fake tensors: shapes, dtypes and devices without values.

``python steps.py DEVICE.so TORCH_LIB`` runs in its own process, because the library must be loaded before PyTorch,
which looks for it only once.
"""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from pathlib import Path
from typing import Any

device, libraries = sys.argv[1:]
for name in ("libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL(str(Path(libraries) / name), ctypes.RTLD_GLOBAL)
ctypes.CDLL(device)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from search_spaces.cell import Cell  # noqa: E402
from search_spaces.methods import METHODS  # noqa: E402
from tests.trainers.tiny import cell  # noqa: E402
from trainers import engine, head, optimizer  # noqa: E402
from trainers.attention import ATTENTIONS  # noqa: E402
from trainers.engine import Engine  # noqa: E402
from trainers.model import GPT  # noqa: E402
from trainers.world import World  # noqa: E402


class Event:
    """An event of a device on which nothing has to wait."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Recorded:
    """Captures by calling, and replays by returning the captured result."""

    def __init__(self, work: object, pool: tuple[int, int]) -> None:
        self.result = work()  # type: ignore[operator]

    def __call__(self) -> Tensor:
        return self.result


def adam(*lists: list[Tensor], **options: Any) -> None:
    """Replaces the fused kernel, which does not support fake tensors. Checks that its arguments are on the device."""
    given = [tensor for tensors in lists for tensor in tensors] + [options["found_inf"], options["lr"]]
    assert options["fused"]
    assert {tensor.device.type for tensor in given} == {"cuda"}


class OnDevice(GPT):
    """A model created on the device: a module's parameters cannot be replaced by fake ones."""

    def __init__(self, *arguments: Any) -> None:
        with torch.device("cuda"):
            super().__init__(*arguments)

    def to(self, device: torch.device) -> OnDevice:  # type: ignore[override]
        return self


def steps(this: Cell) -> None:
    world = World(0, 1, torch.device("cuda"))
    one = Engine(this, world, compile=False)
    spec = this.training
    batch_BU = np.zeros((spec.batch_size, spec.sequence_length + 1), np.uint16)
    for chunk in (None, head.compute_chunk):
        one.objective.chunk = chunk
        one.dry_run_step(2)
        launched = one.launch(batch_BU, step=0, lr=1e-3, micro_batch=2)
        assert launched._metrics_3.shape == (3,)
    one.programs[one._program_key(2)] = one._capture_step(2)
    one.launch(batch_BU, step=1, lr=1e-3, micro_batch=2)
    flags_2 = one._local_backward(one.to_device(batch_BU), 2)
    assert one._update(flags_2).device.type == "cuda"
    with torch.no_grad():
        found = one.objective.eager(one.to_device(batch_BU), this.method, one.gamma)
    assert found.cross_entropy.device.type == "cuda"
    for name, tensor in one.state().items():
        assert tensor.device.type == "cuda", name


def graphs() -> int:
    """Traces everything that is compiled for an accelerator into one graph each, or raises."""
    h_CD, mu_D = torch.empty(64, 16, device="cuda"), torch.empty(16, device="cuda")
    E_VD = torch.empty(50, 16, dtype=torch.bfloat16, device="cuda")
    targets_C = torch.empty(64, dtype=torch.int64, device="cuda")
    traced = partial(torch.compile, backend="eager", fullgraph=True, dynamic=False)
    for method in METHODS:
        found = traced(head.compute_chunk)(
            h_CD,
            E_VD,
            targets_C,
            mu_D,
            mu_D[0],
            N=128,
            **head.static_chunk_arguments(method, "bfloat16"),
        )
        assert (found.grad_E_VD.shape, found.grad_E_VD.dtype) == (E_VD.shape, torch.float32)
    x_BHTK = torch.empty(2, 4, 128, 24, device="cuda")
    for attend in ATTENTIONS.values():
        assert traced(attend)(x_BHTK, x_BHTK, x_BHTK).shape == x_BHTK.shape
    return len(METHODS) + len(ATTENTIONS)


def main() -> None:
    torch.cuda.graph_pool_handle = lambda: (0, 1)
    torch.cuda.Event = Event  # type: ignore[misc,assignment]
    torch.Tensor.pin_memory = lambda tensor: tensor  # type: ignore[method-assign,assignment]  # fake ones have none
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # type: ignore[attr-defined]
    torch.cuda.is_available = torch.cuda.is_bf16_supported = lambda: True
    engine.CapturedGraph = Recorded  # type: ignore[misc,assignment]
    optimizer.adam = adam  # type: ignore[assignment]
    engine.GPT = OnDevice  # type: ignore[misc]
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_rng_state = torch.cuda.set_rng_state = lambda *_: None  # type: ignore[assignment]
    torch.accelerator.is_available = lambda: False  # otherwise the compiler queries its stream
    taken = 0
    with FakeTensorMode(allow_non_fake_inputs=True):
        for method, of in METHODS.items():
            steps(cell(method, of.default_gamma, precision="bfloat16", weight_decay=0.1))
            taken += 1
        for method, logits_dtype in (("z-loss", "float32"), ("soft-cap", "bfloat16")):
            steps(cell(method, 1.0, precision="float32", logits_dtype=logits_dtype))
            taken += 1
        for norm in ("qk-norm-cap", "soft-clip", "soft-temp", "sigma-reparam", "layer-scale", "qk-clip"):
            steps(cell(precision="bfloat16").model_copy(update={"attention_norm": norm}))
            taken += 1
        for kind in ({"optimizer": "muon"}, {"parametrization": "mup", "mup_base": "nano"}):
            steps(cell(precision="bfloat16", weight_decay=0.1, cautious_weight_decay=True, **kind))
            taken += 1
        compiled = graphs()
    print(f"{taken} kinds of steps, {compiled} graphs")


if __name__ == "__main__":
    main()

"""A compiled chunk of the head on the device, against its definition in float64 and against the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.methods import METHODS
from tests.cuda.cells import COMPILES, CPU, DEVICE, relative_difference
from trainers import head
from trainers.projection import Precision

SHAPES = {"one chunk": (512, 1000, 64, 8192), "chunks of two sizes": (777, 96, 24, 400)}
"""N, V, D, and the maximum number of tokens of a chunk."""
FULL = {"the vocabulary of GPT-2": (4096, 50_304, 224, 2048)} if COMPILES else {}
SPACING = 2**-8
"""Relative spacing of bfloat16."""


def compiled() -> head.ChunkFunction:
    if not COMPILES:
        return head.compute_chunk
    return torch.compile(head.compute_chunk, dynamic=False, fullgraph=True, options=head.COMPILE_OPTIONS)


def drawn(N: int, V: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws logits that are large enough for caps and maxima to have an effect."""
    generator = torch.Generator().manual_seed(0)
    h_ND = torch.randn(N, D, generator=generator)
    E_VD = torch.randn(V, D, generator=generator) * (3 * D**-0.5) + 0.1
    return h_ND, E_VD, torch.randint(V, (N,), generator=generator)


def gamma_of(method: str) -> float:
    return METHODS[method].default_gamma or 0.0


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def formula(method: str, h_ND: Tensor, E_VD: Tensor, targets_N: Tensor) -> list[Tensor]:
    """Returns objective, cross-entropy and both gradients in float64, as the papers define them."""
    h_ND, E_VD, gamma = leaf(h_ND.double()), leaf(E_VD.double()), gamma_of(method)
    logits_NV = h_ND @ E_VD.T
    if method == "soft-cap":
        logits_NV = gamma * torch.tanh(logits_NV / gamma)
    cross_entropy = objective = F.cross_entropy(logits_NV, targets_N)
    if method == "z-loss":
        objective = objective + gamma * logits_NV.logsumexp(-1).square().mean()
    if method == "max-z":
        objective = objective + gamma * logits_NV.amax(-1).square().mean()
    if method == "mu-loss":
        objective = objective + gamma * E_VD.mean(0).square().sum()
    objective.backward()
    assert h_ND.grad is not None
    assert E_VD.grad is not None
    return [objective.detach(), cross_entropy.detach(), h_ND.grad, E_VD.grad]


def found(
    method: str,
    drawing: tuple[Tensor, Tensor, Tensor],
    logits_dtype: Precision,
    chunk: head.ChunkFunction | None,
    device: torch.device,
) -> list[Tensor]:
    """Returns the same from the head, under autocast."""
    h_ND, E_VD, targets_N = leaf(drawing[0].to(device)), leaf(drawing[1].to(device)), drawing[2].to(device)
    gamma = torch.tensor(gamma_of(method), device=device)
    with torch.autocast(device.type, torch.bfloat16):
        losses = head.losses(h_ND[None], E_VD, targets_N[None], method, gamma, logits_dtype, chunk)
    losses.objective.backward()
    assert h_ND.grad is not None
    assert E_VD.grad is not None
    return [losses.objective, losses.cross_entropy, h_ND.grad, E_VD.grad]


@pytest.mark.parametrize(
    ("shape", "method", "logits_dtype"),
    [
        (shape, method, logits_dtype)
        for method in METHODS
        for logits_dtype in ("float32", "bfloat16")
        for shape in SHAPES
        # One method of each kind has a second shape: every shape takes one or two compilations.
        if shape == "one chunk" or method in ("baseline", "z-loss", "soft-cap")
    ],
)
def test_a_compiled_chunk_matches_the_formula_and_the_cpu(
    shape: str, method: str, logits_dtype: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(SHAPES[shape], method, logits_dtype, monkeypatch)


@pytest.mark.parametrize(("method", "logits_dtype"), [("baseline", "bfloat16"), ("z-loss", "bfloat16")])
@pytest.mark.parametrize("shape", FULL)
def test_the_same_at_full_size(
    shape: str, method: str, logits_dtype: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(FULL[shape], method, logits_dtype, monkeypatch)


def compare(
    sizes: tuple[int, int, int, int], method: str, logits_dtype: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    N, V, D, at_once = sizes
    monkeypatch.setattr(head, "MAX_CHUNK_TOKENS", at_once)
    drawing = drawn(N, V, D)
    ours = found(method, drawing, logits_dtype, compiled(), DEVICE)
    exact = formula(method, *drawing)
    blocks = found(method, drawing, logits_dtype, None, CPU)
    narrow = logits_dtype == "bfloat16"
    for value, reference in zip(ours[:2], exact[:2], strict=True):
        assert float(value) == pytest.approx(float(reference), rel=2e-3 if narrow else 1e-5)
    for name, gradient, reference, other in zip(("h", "E"), ours[2:], exact[2:], blocks[2:], strict=True):
        assert relative_difference(gradient, reference) < (3 * SPACING if narrow else 1e-5), (
            f"gradient of {name}, against the formula"
        )
        assert relative_difference(gradient, other) < (2 * SPACING if narrow else 1e-5), (
            f"gradient of {name}, against the CPU"
        )


@pytest.mark.device
@pytest.mark.parametrize("method", METHODS)
def test_the_eager_head_on_the_device_matches_the_cpu(method: str) -> None:
    """The eager head evaluates, and trains if nothing is compiled."""
    drawing = drawn(300, 500, 32)
    for logits_dtype, bound in (("float32", 1e-5), ("bfloat16", 2 * SPACING)):
        ours = found(method, drawing, logits_dtype, None, DEVICE)
        theirs = found(method, drawing, logits_dtype, None, CPU)
        assert all(relative_difference(a, b) < bound for a, b in zip(ours, theirs, strict=True))

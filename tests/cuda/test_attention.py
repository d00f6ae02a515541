"""Each softmax of the attention norms on the device, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from search_spaces.attention_norms import ATTENTION_CAP, CLIP_GAMMA, CLIP_ZETA, TEMPERATURE
from tests.cuda.cells import COMPILES, CPU, DEVICE, relative_difference
from trainers.attention import ATTENTIONS

WIDTHS = (24, 56, 64, 256, 376)
"""Widths of a head: 5M, 16M, FlexAttention's block size, its maximum, and 902M."""
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 4e-2}


def formula(softmax: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    T, K = q.shape[-2:]
    z = q @ k.transpose(-1, -2) * K**-0.5
    if softmax == "cap":
        z = ATTENTION_CAP * torch.tanh(z / ATTENTION_CAP)
    if softmax == "temperature":
        z = TEMPERATURE * z
    p = torch.softmax(z.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf), dim=-1)
    if softmax == "clip":
        p = (p * (CLIP_ZETA - CLIP_GAMMA) + CLIP_GAMMA).clamp(0.0, 1.0)
    return p @ v


def kinds() -> list[tuple[str, torch.dtype, int, bool]]:
    """Returns softmax, dtype, width, and whether compiled: every combination of training. Other widths of the cap are
    compiled in one dtype only."""
    found = [(softmax, dtype, K, False) for softmax in ATTENTIONS for dtype in BOUNDS for K in WIDTHS]
    if COMPILES:
        found += [("cap", torch.bfloat16, K, True) for K in WIDTHS]
        found += [("cap", torch.float32, K, True) for K in (56, 64)]
        found += [(softmax, torch.bfloat16, 56, True) for softmax in ATTENTIONS if softmax != "cap"]
    return found


@pytest.mark.parametrize(("softmax", "dtype", "K", "compiles"), kinds(), ids=str)
def test_forward_and_backward_match_the_formula(softmax: str, dtype: torch.dtype, K: int, compiles: bool) -> None:
    """The length is not a multiple of a block, and the logits are as far apart as in training."""
    generator = torch.Generator().manual_seed(K)
    B, H, T = 2, 2, 200
    drawn = [(torch.randn(B, H, T, K, generator=generator) * 3).to(dtype) for _ in range(3)]
    slope = torch.randn(B, H, T, K, generator=generator).to(dtype)
    attend = ATTENTIONS[softmax]  # type: ignore[index]
    if compiles:
        attend = torch.compile(attend, dynamic=False, fullgraph=True)

    def run(device: torch.device, dtype: torch.dtype, call: object) -> list[Tensor]:
        inputs = [x.to(device, dtype).requires_grad_() for x in drawn]
        y = call(*inputs)  # type: ignore[operator]
        return [y, *torch.autograd.grad(y, inputs, slope.to(device, dtype))]

    ours = run(DEVICE, dtype, attend)
    exact = run(CPU, torch.float64, lambda *inputs: formula(softmax, *inputs))
    for name, value, reference in zip(("y", "q", "k", "v"), ours, exact, strict=True):
        assert value.dtype == dtype
        assert relative_difference(value, reference) < BOUNDS[dtype], name

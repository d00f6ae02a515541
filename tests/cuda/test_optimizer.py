"""Clip, weight decay and Adam on the device against the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.cuda.cells import CPU, DEVICE, relative_difference
from tests.trainers.tiny import of
from trainers.optimizer import Optimizer
from trainers.parametrization import HiddenMatrix


def made(device: torch.device, **fields: Any) -> Optimizer:
    generator = torch.Generator().manual_seed(0)
    shapes = ((300, 64), (64,), (64, 192), (7, 5))
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
    optimizer = Optimizer(parameters, [HiddenMatrix(parameters[2], 2, 3.0)])
    optimizer.reset(of(**fields).training)
    return optimizer


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"weight_decay": 1e-2},
        {"weight_decay": 0.1, "weight_decay_mode": "coupled"},
        {"weight_decay": 0.1, "cautious_weight_decay": True},
        {"betas": (0.0, 0.99)},
    ],
    ids=str,
)
def test_steps_match_the_cpu(fields: dict[str, Any]) -> None:
    ours, theirs = made(DEVICE, **fields), made(CPU, **fields)
    generator = torch.Generator().manual_seed(1)
    for i in range(6):
        gradient = torch.randn(ours.values.shape, generator=generator)
        norms = []
        for one in (ours, theirs):
            one.gradient.copy_(gradient)
            one.lr.fill_(1e-2 / (i + 1))
            norms.append(float(one.clip(1.0)))
            one.halt(torch.tensor(i == 4, device=one.values.device))  # the last two are skipped
            one.step()
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert float(ours.steps) == float(theirs.steps) == 4
    for name in ("values", "exp_avg", "exp_avg_sq"):
        assert relative_difference(getattr(ours, name), getattr(theirs, name)) < 1e-6, name


def test_steps_of_muon_match_the_cpu_within_the_spacing_of_bfloat16() -> None:
    ours, theirs = made(DEVICE, optimizer="muon"), made(CPU, optimizer="muon")
    start = theirs.values.clone()
    generator = torch.Generator().manual_seed(1)
    for i in range(4):
        gradient = torch.randn(ours.values.shape, generator=generator)
        for one in (ours, theirs):
            one.gradient.copy_(gradient)
            one.lr.fill_(1e-2)
            one.halt(torch.tensor(i == 3, device=one.values.device))
            one.step()
    assert float(ours.steps) == float(theirs.steps) == 3
    assert relative_difference(ours.values.cpu() - start, theirs.values - start) < 2e-2
    assert relative_difference(ours.exp_avg, theirs.exp_avg) < 1e-6

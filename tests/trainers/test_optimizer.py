from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import cell
from torch import nn

from search_spaces.cell import TrainingSpec
from trainers.optimizer import Optimizer, clip, lr_at


def spec(**fields: object) -> TrainingSpec:
    return cell(**fields).training


@st.composite
def schedules(draw: st.DrawFn) -> tuple[TrainingSpec, float]:
    steps = draw(st.integers(1, 300))
    lr = draw(st.floats(1e-4, 1.0))
    return spec(steps=steps, warmup_steps=draw(st.integers(0, steps)), min_lr=lr * draw(st.floats(0, 1))), lr


@settings(deadline=None)
@given(schedules())
def test_schedule_rises_to_the_peak_and_falls_to_the_minimum(schedule):
    spec, lr = schedule
    values = [lr_at(step, spec, lr) for step in range(spec.steps)]
    warm, cool = values[: spec.warmup_steps], values[spec.warmup_steps :]
    assert all(0 < value <= lr * (1 + 1e-12) for value in warm)
    assert warm == sorted(warm)
    assert cool == sorted(cool, reverse=True)
    if warm:
        assert warm[-1] == lr
    if cool:
        assert cool[0] <= lr * (1 + 1e-12)
        assert cool[-1] == pytest.approx(spec.min_lr)


@settings(deadline=None)
@given(schedules())
def test_schedule_has_no_jump(schedule):
    """Warm-up is one straight line from 0, and the cosine goes on where it ended, never steeper than a cosine is."""
    spec, lr = schedule
    values = [0.0, *(lr_at(step, spec, lr) for step in range(spec.steps))]
    changes = [b - a for a, b in pairwise(values)]
    warm, cool = changes[: spec.warmup_steps], changes[spec.warmup_steps :]
    assert warm == pytest.approx([lr / max(spec.warmup_steps, 1)] * len(warm))
    if warm and cool:
        steepest = 0.5 * math.pi * (lr - spec.min_lr) / len(cool)
        assert all(-steepest * (1 + 1e-9) - 1e-15 <= change <= 1e-15 for change in cool)


def test_schedule_golden_values():
    values = [lr_at(step, spec(steps=6, warmup_steps=2, min_lr=0.1), 1.0) for step in range(6)]
    assert values == pytest.approx([0.5, 1.0, 0.8681981, 0.55, 0.2318019, 0.1])


@pytest.mark.parametrize("lr", [0.0, 1.0])
def test_weight_decay_is_independent_of_the_learning_rate(lr):
    """A matrix without gradient shrinks by (1 - 1e-4) a step, whatever the learning rate; a norm's scale does not."""
    matrix, scale = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
    optimizer = Optimizer([matrix, scale])
    optimizer.reset(spec(weight_decay=1e-4))
    for _ in range(50):
        matrix.grad, scale.grad = torch.zeros_like(matrix), torch.zeros_like(scale)
        optimizer.step(lr)
    torch.testing.assert_close(matrix.detach(), torch.full((3, 2), (1 - 1e-4) ** 50))
    assert torch.equal(scale.detach(), torch.ones(3))


def test_steps_are_adams():
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(4, 3, generator=generator), torch.randn(5, 4, 3, generator=generator)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = Optimizer([mine])
    optimizer.reset(spec(weight_decay=0.0))
    reference = torch.optim.Adam([theirs], betas=(0.9, 0.95), eps=1e-8, foreach=False)
    for i, gradient in enumerate(gradients):
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        reference.param_groups[0]["lr"] = 0.1 / (i + 1)
        reference.step()
        optimizer.step(0.1 / (i + 1))
    torch.testing.assert_close(mine, theirs)


def test_reset_forgets_the_moments_in_place():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer([parameter])
    optimizer.reset(spec())
    parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)
    tensors = optimizer.state()
    assert all(tensor.any() for tensor in tensors.values())
    optimizer.reset(spec(betas=(0.5, 0.6)))
    assert not any(tensor.any() for tensor in tensors.values())
    assert all(tensor is tensors[name] for name, tensor in optimizer.state().items())
    assert optimizer.betas == (0.5, 0.6)


@pytest.mark.parametrize("max_norm", [1.0, 100.0])
def test_clip_returns_the_norm_before(max_norm):
    gradients = [torch.full((2, 2), 3.0), torch.full((3,), 4.0)]
    before = torch.cat([g.flatten() for g in gradients])
    assert float(clip(gradients, max_norm)) == pytest.approx(float(before.norm()))
    after = torch.cat([g.flatten() for g in gradients])
    torch.testing.assert_close(after, before * min(1.0, max_norm / float(before.norm())))

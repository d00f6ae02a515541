from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import cell
from torch import nn

from search_spaces.training_spec import TrainingSpec
from trainers.optimizer import Optimizer, lr_at
from trainers.parametrization import HiddenMatrix


def spec(**fields: object) -> TrainingSpec:
    return cell(**fields).training


SCHEDULES = ("cosine", "linear", "wsd", "constant")


@st.composite
def schedules(draw: st.DrawFn) -> tuple[TrainingSpec, float]:
    steps = draw(st.integers(1, 300))
    lr = draw(st.floats(1e-4, 1.0))
    warmup_steps = draw(st.integers(0, steps - 1))
    kind = draw(st.sampled_from(SCHEDULES))
    share = {"decay_share": draw(st.floats(0.01, 1.0)) * (steps - warmup_steps) / steps} if kind == "wsd" else {}
    min_lr = lr * draw(st.floats(0, 1))
    return spec(steps=steps, warmup_steps=warmup_steps, schedule=kind, min_lr=min_lr, **share), lr


@settings(deadline=None)
@given(schedules())
def test_schedule_rises_to_the_peak_and_falls_towards_the_minimum(schedule):
    spec, lr = schedule
    values = [lr_at(step, spec, lr) for step in range(spec.steps)]
    warm, after = values[: spec.warmup_steps], values[spec.warmup_steps :]
    assert warm == pytest.approx([lr * (t + 1) / (spec.warmup_steps + 1) for t in range(spec.warmup_steps)])
    assert after[0] == lr
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(after))
    assert after[-1] >= spec.min_lr * (1 - 1e-12)


@settings(deadline=None)
@given(schedules())
def test_schedule_has_no_jump(schedule):
    """The warm-up is a straight line from 0 to the peak. The schedule after it falls from the peak to the minimum at
    the step after the last, never more steeply than its curve."""
    spec, lr = schedule
    values = [0.0, *(lr_at(step, spec, lr) for step in range(spec.steps)), spec.min_lr]
    changes = [b - a for a, b in pairwise(values)]
    W = spec.warmup_steps
    assert changes[: W + 1] == pytest.approx([lr / (W + 1)] * (W + 1))
    falling = spec.decay_steps if spec.schedule == "wsd" else spec.steps - W
    steepest = (0.5 * math.pi if spec.schedule == "cosine" else 1.0) * (lr - spec.min_lr) / falling
    if spec.schedule == "constant":
        assert set(values[W + 1 : -1]) == {lr}
    else:
        assert all(-steepest * (1 + 1e-9) - 1e-15 <= change <= 1e-15 for change in changes[W + 1 :])


@settings(deadline=None)
@given(schedules())
def test_schedule_is_its_formula(schedule):
    """The formula is evaluated in float64, with the exact fraction of the decay."""
    spec, lr = schedule
    W, S = spec.warmup_steps, spec.steps
    D = max(1, round(S * spec.decay_share)) if spec.schedule == "wsd" else S - W
    for t in range(S):
        x = np.float64(max(0, t - (S - D))) / np.float64(D)  # the fraction of the decay that has passed
        share = {"cosine": (1 + np.cos(np.pi * x)) / 2, "constant": 1.0}.get(spec.schedule, 1 - x)
        want = spec.min_lr + (lr - spec.min_lr) * share if t >= W else lr * (t + 1) / (W + 1)
        assert lr_at(t, spec, lr) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"schedule": "cosine"}, [1 / 3, 2 / 3, 1.0, 0.868198, 0.55, 0.231802]),
        ({"schedule": "linear"}, [1 / 3, 2 / 3, 1.0, 0.775, 0.55, 0.325]),
        ({"schedule": "wsd", "decay_share": 1 / 3}, [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 0.55]),
        ({"schedule": "constant"}, [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]),
    ],
    ids=SCHEDULES,
)
def test_schedule_golden_values(fields, values):
    found = [lr_at(step, spec(steps=6, warmup_steps=2, min_lr=0.1, **fields), 1.0) for step in range(6)]
    assert found == pytest.approx(values, abs=1e-6)


def step(optimizer: Optimizer, lr: float) -> None:
    optimizer.lr.fill_(lr)
    optimizer.step()


@pytest.mark.parametrize(("mode", "factor"), [("independent", 1.0), ("coupled", 0.5)])
def test_weight_decay_takes_a_fraction_off_each_matrix(mode, factor):
    """A matrix without a gradient shrinks by (1 - wd) per step at any learning rate, or by (1 - lr * wd); norm weights
    do not shrink."""
    matrix, scale = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
    optimizer = Optimizer([matrix, scale])
    optimizer.reset(spec(weight_decay=1e-3, weight_decay_mode=mode))
    for _ in range(50):
        step(optimizer, 0.5)
    torch.testing.assert_close(matrix.detach(), torch.full((3, 2), (1 - factor * 1e-3) ** 50))
    assert torch.equal(scale.detach(), torch.ones(3))


def test_coupled_weight_decay_matches_adamw():
    assert_steps_are(torch.optim.AdamW, weight_decay=0.1, weight_decay_mode="coupled")


def test_without_weight_decay_steps_match_adam():
    assert spec().weight_decay == 0
    assert_steps_are(torch.optim.Adam, weight_decay=0.0)


def assert_steps_are(reference: type[torch.optim.Optimizer], **fields: Any) -> None:
    """Takes five steps on one matrix at falling learning rates with torch's optimizer."""
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(4, 3, generator=generator), torch.randn(5, 4, 3, generator=generator)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = Optimizer([mine])
    optimizer.reset(spec(**fields))
    torchs = reference([theirs], betas=(0.9, 0.95), eps=1e-8, foreach=False, weight_decay=fields["weight_decay"])  # type: ignore[call-arg]
    for i, gradient in enumerate(gradients):
        mine.grad.copy_(gradient)
        theirs.grad = gradient.clone()
        torchs.param_groups[0]["lr"] = 0.1 / (i + 1)
        torchs.step()
        step(optimizer, 0.1 / (i + 1))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("mode", ["independent", "coupled"])
def test_cautious_decay_matches_the_paper(mode, beta1):
    """Algorithm 1 of arXiv 2510.12402 is computed by hand in float64; some weights and gradients are zero."""
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(6, 5, generator=generator), torch.randn(5, 6, 5, generator=generator)
    start[0], gradients[:, 1] = 0.0, 0.0
    mine, scale = nn.Parameter(start.clone()), nn.Parameter(torch.ones(3))
    optimizer = Optimizer([mine, scale])
    optimizer.reset(spec(weight_decay=0.1, weight_decay_mode=mode, cautious_weight_decay=True, betas=(beta1, 0.95)))
    x, m, v = start.double(), torch.zeros(6, 5).double(), torch.zeros(6, 5).double()
    for t, gradient in enumerate(gradients.double(), 1):
        lr = 0.3 / t
        m, v = beta1 * m + (1 - beta1) * gradient, 0.95 * v + 0.05 * gradient**2
        u = (m / (1 - beta1**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        decay = 0.1 * (lr if mode == "coupled" else 1.0) * ((u * x) >= 0)
        assert 0 < int((decay > 0).sum()) < decay.numel()
        x = x - lr * u - decay * x
        mine.grad.copy_(gradient)
        step(optimizer, lr)
    torch.testing.assert_close(mine.detach().double(), x, rtol=1e-5, atol=1e-6)
    assert torch.equal(scale.detach(), torch.ones(3))


def test_reset_forgets_the_moments_in_place():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer([parameter])
    optimizer.reset(spec())
    parameter.grad.fill_(1.0)
    step(optimizer, 0.1)
    tensors = optimizer.state()
    assert all(tensor.any() for tensor in tensors.values())
    optimizer.reset(spec(betas=(0.5, 0.6)))
    assert not any(tensor.any() for tensor in tensors.values())
    assert all(tensor is tensors[name] for name, tensor in optimizer.state().items())
    assert optimizer.spec.betas == (0.5, 0.6)


@pytest.mark.parametrize("max_norm", [1.0, 100.0])
def test_clip_returns_the_norm_before(max_norm):
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))]
    optimizer = Optimizer(parameters)
    for parameter, value in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad.fill_(value)
    before = torch.cat([p.grad.flatten() for p in parameters])
    assert float(optimizer.clip(max_norm)) == pytest.approx(float(before.norm()))
    after = torch.cat([p.grad.flatten() for p in parameters])
    torch.testing.assert_close(after, before * min(1.0, max_norm / float(before.norm())))


def test_parameters_and_gradients_become_views_of_one_vector_and_keep_their_values():
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (7,), (2, 2))]
    values = [p.detach().clone() for p in parameters]
    optimizer = Optimizer(parameters)
    for p, value in zip(parameters, values, strict=True):
        assert torch.equal(p.detach(), value)
        assert p.untyped_storage().data_ptr() == optimizer.values.untyped_storage().data_ptr()
        p.square().sum().backward()
    assert float(optimizer.gradient.square().sum()) == pytest.approx(sum(float(4 * v.square().sum()) for v in values))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"weight_decay": 0.1, "weight_decay_mode": "coupled"},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "cautious_weight_decay": True},
    ],
)
def test_a_skipped_step_and_those_after_it_change_nothing_until_reset(fields, optimizer):
    fields = fields | {"optimizer": optimizer}
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.randn(6, 4))]
    optimizer = Optimizer(parameters, [HiddenMatrix(parameters[2], 3, 2.0)])
    optimizer.reset(spec(**fields))
    optimizer.gradient.normal_()
    step(optimizer, 0.1)
    before = [tensor.clone() for tensor in (optimizer.values, *optimizer.state().values())]
    for refused in (True, False):
        optimizer.gradient.fill_(math.nan if refused else 1.0)
        optimizer.halt(torch.tensor(refused))
        step(optimizer, 0.1)
        optimizer.unless_halted(lambda: parameters[0].data.zero_(), [parameters[0].data])
    for tensor, old in zip((optimizer.values, *optimizer.state().values()), before, strict=True):
        assert torch.equal(tensor, old)
    optimizer.reset(spec(**fields))
    optimizer.gradient.fill_(1.0)
    step(optimizer, 0.1)
    assert not torch.equal(optimizer.values, before[0])

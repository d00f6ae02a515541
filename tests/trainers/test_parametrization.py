"""muP against its table, and the coordinate check: activations change equally at every width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny import batches, cell
from torch import Tensor, nn

from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.cell import Cell
from search_spaces.scales import SCALES
from search_spaces.training_spec import ModelSpec
from trainers.engine import Engine
from trainers.model import GPT
from trainers.optimizer import Optimizer
from trainers.parametrization import HiddenMatrix
from trainers.world import World

V, T = 64, 16
WIDTHS = ("w96", "w192", "w384")
STEPS = 4
"""Steps of a coordinate check."""


def gpt(scale: str, base: str, **fields: Any) -> GPT:
    attention_norm = fields.pop("attention_norm", "qk-norm")
    model = GPT(SCALES[scale], ModelSpec(**fields), V, T, attention_norm, SCALES[base])
    model.reset_parameters(0)
    return model


@pytest.mark.parametrize("init", ["xavier", "normal"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("scale", "base"), [("w384", "w96"), ("8M", "5M"), ("5M", "8M")])
def test_initial_values_scale_with_the_root_of_the_inputs(scale, base, init, tied):
    """This holds for the matrices of blocks; embedding and head keep the values of the base. F of 8M is twice that of
    5M, but D is only 4/3 of it."""
    here, there = SCALES[scale], SCALES[base]
    found = {tuple(W.shape): std for W, std in gpt(scale, base, init=init, tied=tied)._initial_stds()}

    def xavier(outputs: int, inputs: int) -> float:
        return (2 / (outputs + inputs)) ** 0.5 if init == "xavier" else 0.02

    D, F = (there.D / here.D) ** 0.5, (there.hidden / here.hidden) ** 0.5
    assert found[(3 * here.D, here.D)] == pytest.approx(xavier(3 * there.D, there.D) * D)
    assert found[(here.D, here.D)] == pytest.approx(0.02 / (2 * here.L) ** 0.5 * D)
    assert found[(here.hidden, here.D)] == pytest.approx(xavier(there.hidden, there.D) * D)
    assert found[(here.D, here.hidden)] == pytest.approx(xavier(there.D, there.hidden) * F)
    stds = [std for W, std in gpt(scale, base, init=init, tied=tied)._initial_stds() if len(W) == V]
    head = xavier(V, there.D)
    assert stds == pytest.approx([head] if tied else [there.D**-0.5, head])


@pytest.mark.parametrize("attention_norm", ["qk-norm", "none"])
def test_logits_are_scaled_by_width(attention_norm):
    """Outputs times D0 / D, attention logits times sqrt(K0 / K), so that they are ``q . k sqrt(K0) / K``."""
    mup, standard = (gpt("8M", base, attention_norm=attention_norm) for base in ("5M", "8M"))
    standard.load_state_dict(mup.state_dict())
    seen: dict[str, list[Tensor]] = {"mup": [], "standard": []}
    outputs = {}
    for name, model in (("mup", mup), ("standard", standard)):
        qk = model.blocks[0].attention.qk
        qk.register_forward_hook(lambda m, i, y, name=name: seen[name].extend(y))
        model.norm.register_forward_hook(lambda m, i, y, name=name: outputs.update({name: y}))
        outputs[f"{name} h"] = model(torch.arange(T)[None])
    (q, k), (q_standard, k_standard) = seen["mup"], seen["standard"]
    torch.testing.assert_close(q, q_standard * (24 / 32) ** 0.5)
    torch.testing.assert_close(k, k_standard)
    torch.testing.assert_close(outputs["mup h"], outputs["mup"] * (96 / 128))
    torch.testing.assert_close(outputs["standard h"], outputs["standard"])


@pytest.mark.parametrize(
    "fields", [{}, {"weight_decay": 0.1, "weight_decay_mode": "coupled"}], ids=["no decay", "decay"]
)
def test_learning_rates_match_groups_of_adamw(fields):
    """lr / r for hidden matrices, lr for the rest. Coupled decay takes ``lr * weight_decay`` at every width."""
    generator = torch.Generator().manual_seed(0)
    shapes = {(8, 6): None, (6, 6): 4.0, (6,): None, (12, 6): 4.0, (6, 12): 3.0}
    mine = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    hidden = [HiddenMatrix(p, 1, r) for p, r in zip(mine, shapes.values(), strict=True) if r]
    optimizer = Optimizer(mine, hidden)
    optimizer.reset(cell(**fields).training)
    decay = fields.get("weight_decay", 0.0)
    ratios = [r or 1.0 for r in shapes.values()]
    groups = [
        {"params": [p], "weight_decay": decay * r if p.dim() > 1 else 0.0} for p, r in zip(theirs, ratios, strict=True)
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for i in range(5):
        lr = 0.1 / (i + 1)
        for p, reference, group, r in zip(mine, theirs, adamw.param_groups, ratios, strict=True):
            p.grad.copy_(torch.randn(p.shape, generator=generator))
            reference.grad, group["lr"] = p.grad.clone(), lr / r
        adamw.step()
        optimizer.lr.fill_(lr)
        optimizer.step()
    for p, reference in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, reference)


def test_muon_needs_no_width_factor():
    """Steps of a matrix have the same spectral norm at every width."""
    weight = nn.Parameter(torch.eye(6))
    steps = []
    for width in (1.0, 4.0):
        optimizer = Optimizer([weight, nn.Parameter(torch.ones(2))], [HiddenMatrix(weight, 1, width)])
        optimizer.reset(cell(optimizer="muon").training)
        weight.grad.copy_(torch.eye(6))
        before = weight.detach().clone()
        optimizer.lr.fill_(0.1)
        optimizer.step()
        steps.append(weight.detach() - before)
    torch.testing.assert_close(steps[0], steps[1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("attention_norm", ATTENTION_NORMS)
def test_at_the_base_mup_is_the_standard_parametrization_bit_for_bit(attention_norm, optimizer):
    found = []
    for fields in ({}, {"parametrization": "mup", "mup_base": "tiny"}):
        this = cell(optimizer=optimizer, **fields).model_copy(update={"attention_norm": attention_norm})
        engine = Engine(this, World.single(), compile=False)
        for i, batch_BU in enumerate(batches(this, 2)):
            engine.step(batch_BU, step=i, lr=1e-2, micro_batch=4)
        found.append(engine.optimizer.values)
    assert torch.equal(*found)


@contextmanager
def recording(model: GPT) -> Iterator[dict[str, Tensor]]:
    """Yields the outputs of attention and SwiGLU of each block, which a forward pass fills."""
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        hooks = [
            module.register_forward_hook(lambda m, i, y, name=f"{kind} {at}": seen.update({name: y.clone()}))
            for at, block in enumerate(model.blocks)
            for kind, module in (("attention", block.attention), ("mlp", block.mlp))
        ]
        yield seen
        for hook in hooks:
            hook.remove()


def activations(engine: Engine, tokens_BT: Tensor) -> dict[str, Tensor]:
    model = engine.objective.model
    with recording(model) as seen:
        logits_BTV = model(tokens_BT) @ model.E_VD.T
    return seen | {"logits": logits_BTV}


def width_cell(scale: str, seed: int, optimizer: str, parametrization: str) -> Cell:
    base = {"parametrization": "mup", "mup_base": "w96"} if parametrization == "mup" else {}
    return cell(scale=scale, seed=seed, batch_size=8, logits_dtype="float32", optimizer=optimizer, **base)


@cache
def changes(scale: str, optimizer: str, parametrization: str, lr: float) -> dict[str, float]:
    """Returns the root mean square change of each activation in steps on one batch, over two seeds."""
    found: dict[str, list[float]] = {}
    for seed in (1, 2):
        engine = Engine(width_cell(scale, seed, optimizer, parametrization), World.single(), compile=False)
        (batch_BU,) = batches(engine.cell, 1)
        tokens_BT = torch.from_numpy(batch_BU.astype(np.int64))[:, :-1]
        before = activations(engine, tokens_BT)
        for i in range(STEPS):
            assert engine.step(batch_BU, step=i, lr=lr, micro_batch=8).finite
        for name, after in activations(engine, tokens_BT).items():
            found.setdefault(name, []).append(float((after - before[name]).square().mean().sqrt()))
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_with_mup_activations_change_equally_at_every_width(optimizer):
    by_width = [changes(scale, optimizer, "mup", 1e-2) for scale in WIDTHS]
    for name in by_width[0]:
        values = [change[name] for change in by_width]
        # The part of the logits that comes from the initial E falls with the root of the width.
        assert max(values) < (1.6 if name == "logits" else 1.3) * min(values), (name, values)


def test_with_the_standard_parametrization_they_grow_with_width():
    """Adam changes every entry of a matrix equally, so that its outputs change in proportion to its inputs."""
    by_width = [changes(scale, "adamw", "standard", 1e-2) for scale in WIDTHS]
    for name in by_width[0]:
        values = [change[name] for change in by_width]
        assert values == sorted(values), (name, values)
        assert values[-1] > 1.7 * values[0], (name, values)

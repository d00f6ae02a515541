"""Muon against torch.optim.Muon, and the AdamW that is used along with it against torch.optim.AdamW."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from tiny import cell
from torch import Tensor, nn

from search_spaces.training_spec import TrainingSpec
from trainers import muon
from trainers.engine import Engine
from trainers.optimizer import Optimizer
from trainers.parametrization import HiddenMatrix
from trainers.world import World

SHAPES = {"square": (16, 16, 1), "tall": (24, 8, 1), "wide": (8, 24, 1), "qkv": (48, 16, 3), "gate and up": (64, 16, 2)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spec(**fields: Any) -> TrainingSpec:
    return cell(optimizer="muon", **fields).training


@pytest.mark.parametrize(
    "fields", [{}, {"weight_decay": 0.1, "weight_decay_mode": "coupled"}], ids=["no decay", "decay"]
)
def test_steps_match_torch(fields: dict[str, Any]) -> None:
    """Takes ten steps with all shapes at once, at falling learning rates, including an embedding and a norm that AdamW
    updates."""
    weights = [nn.Parameter(random(*shape, seed=i)) for i, (*shape, _) in enumerate(SHAPES.values())]
    others = [nn.Parameter(random(12, 8)), nn.Parameter(torch.ones(8))]
    optimizer = Optimizer([others[0], *weights, others[1]], hidden_of(weights))
    decay = fields.get("weight_decay", 0.0)
    theirs = [nn.Parameter(part.clone()) for weight in weights for part in split(weight)]
    theirs_of_adam = [nn.Parameter(p.detach().clone()) for p in others]
    torchs = torch.optim.Muon(theirs, lr=0.1, weight_decay=decay)
    groups = [{"params": [theirs_of_adam[0]]}, {"params": [theirs_of_adam[1]], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    optimizer.reset(spec(muon_lr_ratio=4.0, **fields))
    for i in range(10):
        lr = 0.05 / (i + 1)
        for j, p in enumerate((*weights, *others)):
            p.grad.copy_(random(*p.shape, seed=100 * i + j))
        for p, part in zip(theirs, [part for weight in weights for part in split(weight.grad)], strict=True):
            p.grad = part.clone()
        for p, other in zip(theirs_of_adam, others, strict=True):
            p.grad = other.grad.clone()
        torchs.param_groups[0]["lr"] = 4.0 * lr
        for group in adamw.param_groups:
            group["lr"] = lr
        torchs.step()
        adamw.step()
        optimizer.lr.fill_(lr)
        optimizer.step()
        found = [part for weight in weights for part in split(weight)]
        for p, part, name in zip(theirs, found, [n for n, (*_, P) in SHAPES.items() for _ in range(P)], strict=True):
            # Both products are in bfloat16, but stacked matrices use other kernels.
            torch.testing.assert_close(part, p.detach(), rtol=0, atol=2e-3 * lr * 4.0 * (i + 1), msg=name)
    for p, other in zip(theirs_of_adam, others, strict=True):
        torch.testing.assert_close(other, p)
    assert float(optimizer.steps) == 10


def hidden_of(weights: list[nn.Parameter]) -> list[HiddenMatrix]:
    return [HiddenMatrix(weight, P, 1.0) for weight, (*_, P) in zip(weights, SHAPES.values(), strict=True)]


def split(weight: Tensor) -> list[Tensor]:
    """Returns the matrices in a weight or its gradient."""
    parts = {tuple(shape): P for *shape, P in SHAPES.values()}
    return list(weight.detach().chunk(parts[tuple(weight.shape)]))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 16), (2, 16, 64)])
def test_an_update_is_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    """The update is expressed in the basis of the singular vectors, computed in float64."""
    update = random(*shape)
    found = muon.orthogonalize(update).double()
    U, S, Vh = torch.linalg.svd(update.double(), full_matrices=False)
    large = S / S.norm(dim=-1, keepdim=True) > 0.02
    in_its_basis = U.mT @ found @ Vh.mT
    diagonal = in_its_basis.diagonal(dim1=-2, dim2=-1)
    assert float(diagonal[large].min()) > 0.6
    assert float(diagonal.max()) < 1.3
    assert float((in_its_basis - torch.diag_embed(diagonal)).abs().max()) < 0.05


def test_a_zero_gradient_takes_no_step() -> None:
    assert not muon.orthogonalize(torch.zeros(1, 4, 4)).any()


def test_cautious_decay_follows_the_sign_of_the_orthogonal_update() -> None:
    weight = nn.Parameter(random(16, 8))
    optimizer = Optimizer([weight, nn.Parameter(torch.ones(4))], [HiddenMatrix(weight, 1, 1.0)])
    optimizer.reset(spec(weight_decay=0.1, cautious_weight_decay=True))
    weight.grad.copy_(random(16, 8, seed=1))
    before = weight.detach().clone()
    update, _ = muon.update(weight.grad[None], torch.zeros(1, 16, 8))
    optimizer.lr.fill_(0.02)
    optimizer.step()
    want = before - 0.1 * before * (update[0] * before >= 0) - 0.02 * update[0]
    torch.testing.assert_close(weight.detach(), want)


def test_muon_only_updates_the_matrices_of_blocks() -> None:
    engine = Engine(cell(optimizer="muon"), World.single(), compile=False)
    names = [name for name, _ in engine.objective.model.named_parameters()]
    muon = [id(slot) for slot in engine.optimizer.muon]
    muons = {name for name, slot in zip(names, engine.optimizer.slots, strict=True) if id(slot) in muon}
    layers = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
    assert muons == {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers}
    assert [slot.hidden.parts for slot in engine.optimizer.muon] == [3, 1, 2, 1] * 2
    engine.step(tiny.batches(engine.cell, 1)[0], step=0, lr=1e-2, micro_batch=4)
    for name, slot in zip(names, engine.optimizer.slots, strict=True):
        assert slot.exp_avg.any(), name
        assert slot.exp_avg_sq.any() == (name not in muons), name


@pytest.mark.parametrize("tied", [False, True])
def test_it_learns(tokens, tied: bool) -> None:
    """The cell trains at a typical learning rate for Muon."""
    this = cell(optimizer="muon", lr=0.02, logits_dtype="float32")
    this = this.model_copy(update={"model": this.model.model_copy(update={"tied": tied})})
    engine = Engine(this, World.single(), compile=False)
    losses = []
    for i in range(60):
        batch_BU = tokens.train.read(range(4 * i, 4 * i + 4), tiny.T)
        losses.append(engine.step(batch_BU, step=i, lr=0.02, micro_batch=4).loss)
    assert sum(losses[-5:]) / 5 < losses[0] - 1.5

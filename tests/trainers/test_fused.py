"""A step as one compiled function has the gradients of the eager one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny import cell
from torch import Tensor

from search_spaces.cell import ModelSpec
from search_spaces.methods import METHODS
from trainers import fused
from trainers.engine import Engine
from trainers.world import World


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler captures runs by PyTorch's own kernels: seconds instead of half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def engine_of(method: str, **fields: object) -> Engine:
    strength = METHODS[method].strength
    return Engine(cell(method, strength and 10 * strength.default, **fields), World.single(), compile=False)


def batch_of(engine: Engine, seed: int = 0) -> Tensor:
    spec = engine.cell.training
    shape = (spec.batch_size, spec.sequence_length + 1)
    return torch.randint(engine.cell.V, shape, generator=torch.Generator().manual_seed(seed))


def eager(engine: Engine, tokens_BU: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and the gradient as one vector."""
    engine.optimizer.zero_grad()
    losses = engine.objective(tokens_BU, engine.cell.method, engine.strength)
    losses.objective.backward()
    return losses.cross_entropy, engine.optimizer.gradient.clone()


def in_one(engine: Engine, tokens_BU: Tensor, gradients: fused.Gradients, share: float = 1.0) -> tuple[Tensor, Tensor]:
    engine.optimizer.zero_grad()
    cross_entropy = gradients(tokens_BU, engine.cell.method, engine.strength, share)
    return cross_entropy, engine.optimizer.gradient.clone()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("logits_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_eager_step(method, tied, logits_dtype, without_kernels):
    engine = engine_of(method, logits_dtype=logits_dtype, model=ModelSpec(tied=tied))
    gradients = fused.compiled(engine.objective, engine.optimizer)
    tokens_BU = batch_of(engine)
    (cross_entropy, gradient), (expected, expected_gradient) = (
        in_one(engine, tokens_BU, gradients),
        eager(engine, tokens_BU),
    )
    assert float(cross_entropy) == pytest.approx(float(expected), rel=1e-6)
    assert relative(gradient, expected_gradient) < 1e-5


def test_shares_of_micro_batches_add_up(without_kernels):
    engine = engine_of("z-loss", logits_dtype="float32")
    gradients = fused.compiled(engine.objective, engine.optimizer)
    _, expected = eager(engine, batch_of(engine))
    _, third = in_one(engine, batch_of(engine), gradients, share=0.25)
    assert relative(4 * third, expected) < 1e-5
    gradients(batch_of(engine), engine.cell.method, engine.strength, 0.75)
    assert relative(engine.optimizer.gradient, expected) < 1e-5


@pytest.mark.parametrize(
    ("fields", "size", "fuses"),
    [
        ({}, 1, True),
        ({}, 2, False),
        ({"precision": "bfloat16"}, 1, False),
        ({"model": ModelSpec(dropout=0.1)}, 1, False),
    ],
    ids=["small", "two workers", "autocast", "dropout"],
)
def test_what_is_one_function(fields, size, fuses):
    engine = engine_of("baseline", **fields)
    engine.world = World(0, size, torch.device("cpu"))
    assert engine._can_fuse(engine.cell.training.batch_size) == fuses
    assert not engine._can_fuse(10**9), "its logits would not fit one chunk"


@pytest.mark.slow
def test_the_compiler_keeps_the_rounding_of_the_logits():
    """Inductor drops a rounding to bfloat16 and back unless told not to. At a mean logit of 100 that is a fifth of the
    gradient; what is left are logits so near the middle of two roundings that their last digits decide."""
    gradients, differences = {}, {}
    for logits_dtype in ("float32", "bfloat16"):
        engine = engine_of("baseline", logits_dtype=logits_dtype)
        tokens_BU = batch_of(engine)
        engine.shift_logits(tokens_BU, 100.0)
        cross_entropy, gradient = in_one(engine, tokens_BU, fused.compiled(engine.objective, engine.optimizer))
        expected, gradients[logits_dtype] = eager(engine, tokens_BU)
        assert float(cross_entropy) == pytest.approx(float(expected), rel=1e-5)
        differences[logits_dtype] = relative(gradient, gradients[logits_dtype])
    assert differences["float32"] < 1e-3
    assert differences["bfloat16"] < 0.25 * relative(gradients["bfloat16"], gradients["float32"])

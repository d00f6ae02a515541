"""A step that is one compiled function gives the results of the eager step."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from tiny import batches, of
from torch import Tensor

from search_spaces.methods import METHODS
from search_spaces.training_spec import ModelSpec
from trainers import fused
from trainers.engine import Engine
from trainers.world import World

LR = 1e-2
HALF = 2
"""Sequences of a micro batch; a batch has four."""


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the captured graph with PyTorch's own kernels: seconds instead of half a minute."""
    compile = torch.compile

    def capture(function, *, options, **how):
        del options["emulate_precision_casts"]  # of the kernels
        guards = {"guard_filter_fn": options["guard_filter_fn"]}
        return compile(function, backend="aot_eager", options=guards, **how)

    monkeypatch.setattr(torch, "compile", capture)


def engine_of(method: str, *, compile: bool, **fields: object) -> Engine:
    engine = Engine(of(method, 10, **fields), World.single(), compile=False)
    engine.compile = compile
    return engine


def program_of(engine: Engine, micro_batch: int) -> fused.Step:
    method = fused.gradient_method(engine.cell.method)
    return fused.compile_step(engine.objective, engine.optimizer, engine.cell.training, method, micro_batch)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("logits_dtype", "tied"), [("float32", True), ("bfloat16", False)])
@pytest.mark.parametrize("method", METHODS)
def test_steps_match_the_eager_engine(method, logits_dtype, tied, without_kernels):
    """Weights after three steps, also with weight decay and in micro batches."""
    # Without a large eps, Adam's first steps are the signs of the gradient, even where it is only rounding.
    fields = {"logits_dtype": logits_dtype, "model": ModelSpec(tied=tied), "weight_decay": 1e-3, "eps": 1e-2}
    bound = 1e-5 if logits_dtype == "float32" else 5e-3
    eager, engine = (engine_of(method, compile=compile, **fields) for compile in (False, True))
    program = program_of(engine, HALF)
    engine.programs[engine._program_key(HALF)] = partial(engine._fused_step, program)
    for i, batch_BU in enumerate(batches(engine.cell, 3)):
        expected, found = (e.step(batch_BU, step=i, lr=LR / (i + 1), micro_batch=HALF) for e in (eager, engine))
        assert found == pytest.approx(expected, rel=bound)
    assert relative(engine.optimizer.values, eager.optimizer.values) < bound
    assert relative(engine.optimizer.exp_avg, eager.optimizer.exp_avg) < bound
    assert float(engine.optimizer.steps) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_decay": 1e-2, "cautious_weight_decay": True},
        {"parametrization": "mup", "mup_base": "nano", "weight_decay": 0.1, "weight_decay_mode": "coupled"},
    ],
    ids=["cautious", "mup"],
)
def test_steps_of_other_kinds_match_the_eager_engine(fields, without_kernels):
    fields = {"logits_dtype": "float32", "eps": 1e-2} | fields
    eager, engine = (engine_of("baseline", compile=compile, **fields) for compile in (False, True))
    engine.programs[engine._program_key(HALF)] = partial(engine._fused_step, program_of(engine, HALF))
    for i, batch_BU in enumerate(batches(engine.cell, 3)):
        expected, found = (e.step(batch_BU, step=i, lr=LR / (i + 1), micro_batch=HALF) for e in (eager, engine))
        assert found == pytest.approx(expected, rel=1e-5)
    assert relative(engine.optimizer.values, eager.optimizer.values) < 1e-5


def test_programs_of_two_kinds_are_not_mixed_up(without_kernels):
    """The compiler sees them as one function and checks only their id before a call."""
    engine = engine_of("baseline", compile=True)
    plain = program_of(engine, 4)
    engine.reset(engine.cell.model_copy(update={"method": "z-loss", "gamma": 1.0}))
    penalized = program_of(engine, 4)
    tokens_BU = engine.to_device(batches(engine.cell, 3)[0])
    engine._set_controls(LR, stop=False)
    norms = []
    for program in (plain, penalized, plain):
        engine.reset(engine.cell)
        norms.append(float(program(tokens_BU, engine.controls, engine.gamma)[2]))
    assert norms[0] == norms[2] != norms[1]


def test_a_step_that_is_not_finite_or_is_asked_to_stop_changes_nothing(without_kernels):
    engine = engine_of("z-loss", compile=True)
    program = program_of(engine, 4)
    tokens_BU = engine.to_device(batches(engine.cell, 3)[0])
    for gamma, stop in ((math.inf, False), (1.0, True)):
        engine.reset(engine.cell)
        before = engine.optimizer.values.clone()
        engine.gamma.fill_(gamma)
        engine._set_controls(LR, stop)
        program(tokens_BU, engine.controls, engine.gamma)
        assert torch.equal(engine.optimizer.values, before)
        assert not engine.optimizer.exp_avg.any()
        assert float(engine.optimizer.steps) == 0
        assert float(engine.optimizer.halted) == 1


@pytest.mark.parametrize(
    ("fields", "size", "fuses"),
    [
        ({}, 1, True),
        ({}, 2, False),
        ({"precision": "bfloat16"}, 1, False),
        ({"model": ModelSpec(dropout=0.1)}, 1, False),
        ({"optimizer": "muon"}, 1, False),
        ({"attention_norm": "qk-clip"}, 1, False),
    ],
    ids=["small", "two workers", "autocast", "dropout", "muon", "qk-clip"],
)
def test_which_kinds_are_compiled_as_one_function(fields, size, fuses):
    engine = engine_of("baseline", compile=True, **fields)
    fuses &= fused.is_supported()
    engine.world = World(0, size, torch.device("cpu"))
    assert engine._can_fuse(engine.cell.training.batch_size) == fuses
    assert not engine._can_fuse(10**9), "its logits would not fit in one chunk"


@pytest.mark.slow
@pytest.mark.skipif(not fused.is_supported(), reason="this version of PyTorch cannot compile the fused step")
def test_the_compiler_keeps_the_rounding_of_the_logits():
    """By default inductor removes a rounding to bfloat16 and back. At a mean logit of 100 that changes a fifth of the
    gradient. The remaining differences are logits so close to a rounding boundary that their last digits matter."""
    found, differences = {}, {}
    for logits_dtype in ("float32", "bfloat16"):
        eager, engine = (engine_of("baseline", compile=compile, logits_dtype=logits_dtype) for compile in (False, True))
        (batch_BU,) = batches(engine.cell, 1)
        engine.programs[engine._program_key(4)] = partial(engine._fused_step, program_of(engine, 4))
        for e in (eager, engine):
            e.shift_logits(e.to_device(batch_BU), 100.0)
            step = e.step(batch_BU, step=0, lr=0.0, micro_batch=4)
        differences[logits_dtype] = relative(engine.optimizer.exp_avg, eager.optimizer.exp_avg)
        found[logits_dtype] = eager.optimizer.exp_avg
        assert step.finite
    assert differences["float32"] < 1e-3
    assert differences["bfloat16"] < 0.25 * relative(found["bfloat16"], found["float32"])

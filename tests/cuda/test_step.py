"""Whole steps as CUDA graphs: their results, when they are captured, and that the host never waits for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.methods import METHODS
from tests.cuda.cells import (
    COMPILES,
    CPU,
    DEVICE,
    FLOAT32,
    Recordings,
    bits,
    equal,
    relative_difference,
    warm_engine,
    world,
)
from tests.cuda.cells import trained as trained_by
from tests.trainers.tiny import batches, of
from trainers.engine import Engine
from trainers.numerics import numerics_for
from trainers.sigma_reparam import SigmaLinear

STEPS = 4
VALUES = 2e-3
"""Relative float32 bound after these steps: Adam divides by gradients, and small ones consist mostly of rounding."""
COMPILED_NORMS = ("qk-norm-cap", "sigma-reparam", "soft-clip", "qk-clip")
"""Norms whose blocks are compiled: a cap with FlexAttention, buffers that change between steps, an unfused softmax, and
a buffer that changes in a forward pass."""
KINDS: dict[str, dict[str, Any]] = {
    "cautious": {"weight_decay": 1e-2, "cautious_weight_decay": True},
    "mup": {"parametrization": "mup", "mup_base": "nano"},
    "muon": {"optimizer": "muon", "weight_decay": 1e-2},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_replayed_step_matches_the_eager_step_and_the_cpu(method: str, recordings: Recordings) -> None:
    this = of(method, weight_decay=1e-2, **FLOAT32)
    ours = warm_engine(this, micro_batch=2)
    engines = [Engine(this, world(device), compile=False) for device in (DEVICE, CPU)]
    found = trained_by(ours, STEPS, micro_batch=2)
    assert recordings.made == 1
    for other in engines:
        assert [x for step in found for x in step] == pytest.approx(
            [x for step in trained_by(other, STEPS, micro_batch=2) for x in step], rel=VALUES
        )
        assert relative_difference(ours.optimizer.values, other.optimizer.values) < VALUES


@pytest.mark.parametrize("attention_norm", COMPILED_NORMS if COMPILES else ATTENTION_NORMS)
def test_a_replayed_step_of_an_attention_norm(attention_norm: str, recordings: Recordings) -> None:
    this = of(attention_norm=attention_norm, **FLOAT32)
    ours, other = warm_engine(this, micro_batch=4), Engine(this, world(CPU), compile=False)
    found, expected = (trained_by(engine, STEPS, micro_batch=4) for engine in (ours, other))
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=VALUES)
    assert relative_difference(ours.optimizer.values, other.optimizer.values) < VALUES


@pytest.mark.parametrize("kind", KINDS)
def test_a_replayed_step_of_an_optimizer(kind: str, recordings: Recordings) -> None:
    this = of(**KINDS[kind], **FLOAT32)
    ours, other = warm_engine(this, micro_batch=4), Engine(this, world(CPU), compile=False)
    found, expected = (trained_by(engine, STEPS, micro_batch=4) for engine in (ours, other))
    assert recordings.made == 1
    bound = 1e-2 if kind == "muon" else VALUES  # Muon's products are in bfloat16
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=bound)
    assert relative_difference(ours.optimizer.values, other.optimizer.values) < bound


@pytest.mark.device
@pytest.mark.parametrize("attention_norm", [name for name in ATTENTION_NORMS if name not in COMPILED_NORMS])
def test_an_eager_step_of_every_other_attention_norm(attention_norm: str) -> None:
    this = of(attention_norm=attention_norm, **FLOAT32)
    ours, other = (Engine(this, world(device), compile=False) for device in (DEVICE, CPU))
    found, expected = (trained_by(engine, STEPS, micro_batch=4) for engine in (ours, other))
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=VALUES)
    assert relative_difference(ours.optimizer.values, other.optimizer.values) < VALUES


@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_step_matches_the_cpu_within_its_spacing(method: str, recordings: Recordings) -> None:
    this = of(method, precision="bfloat16", logits_dtype="bfloat16")
    ours, other = warm_engine(this, micro_batch=4), Engine(this, world(CPU), compile=False)
    found, expected = (trained_by(engine, STEPS, micro_batch=4) for engine in (ours, other))
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=1e-2)
    assert [norm for _, norm in found] == pytest.approx([norm for _, norm in expected], rel=5e-2)


def test_a_replay_gives_the_same_bits_as_its_calls() -> None:
    """With deterministic kernels, the same compiled calls in the same order give the same bits."""
    this = of("z-loss", deterministic=True, precision="bfloat16")
    with numerics_for(this.training, DEVICE):
        ours = warm_engine(this, micro_batch=2)
        trained_by(ours, STEPS, micro_batch=2)
        replayed = bits(ours.state().values())
        ours.reset(this)
        for i, batch_BU in enumerate(batches(this, STEPS)):
            ours._set_controls(1e-2 / (i + 1), stop=False)
            ours._step(ours.to_device(batch_BU), micro_batch=2)
        assert equal(replayed, bits(ours.state().values()))


def test_only_a_new_kind_of_step_is_recorded(recordings: Recordings) -> None:
    """A new learning rate, gamma or seed is not a new kind, because a captured step reads them from tensors."""
    engine = warm_engine(of("z-loss"), micro_batch=4)
    compiled = graphs()
    losses = []
    for factor, seed, lr in ((1.0, 1, 1e-2), (1e4, 1, 1e-2), (1e4, 2, 1e-2), (1e4, 2, 1e-1)):
        this = of("z-loss", factor).model_copy(update={"seed": seed})
        warm_engine(this, micro_batch=4, engine=engine)
        losses.append(trained_by(engine, STEPS, micro_batch=4, lr=lr)[-1])
    assert recordings.made == 1
    assert graphs() == compiled
    assert len(set(losses)) == 4, "each of these changes must make a difference"
    warm_engine(of("mu-centering"), micro_batch=4, engine=engine)
    assert recordings.made == 2
    warm_engine(of("z-loss"), micro_batch=2, engine=engine)
    assert recordings.made == 3


def graphs() -> int:
    """Returns how many graphs the compiler has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) if COMPILES else 0


@pytest.mark.device
def test_all_recorded_steps_share_their_memory() -> None:
    """Otherwise each new method in a warm process would reduce the memory that is left."""
    sizes = {"scale": "16M", "batch_size": 16, "sequence_length": 512, "precision": "bfloat16"}
    engine = warm_engine(of("baseline", **sizes), micro_batch=16)
    held = []
    for method in ("baseline", "mu-centering", "z-loss"):
        warm_engine(of(method, **sizes), micro_batch=16, engine=engine)
        trained_by(engine, 1, micro_batch=16)
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert max(held) < 1.1 * held[0], [f"{one / 2**20:.0f} MiB" for one in held]


@pytest.mark.parametrize("fault", ["stop", "norm"])
def test_replays_after_a_skipped_step_leave_no_trace(fault: str) -> None:
    this = of("mu-centering", attention_norm="sigma-reparam", weight_decay=1e-2, **FLOAT32)
    engine = warm_engine(this, micro_batch=4)
    first, *more = batches(this, 4)
    assert engine.step(first, step=0, lr=1e-2, micro_batch=4).finite
    before = bits(engine.state().values())
    scale = engine.objective.model.norm.weight
    if fault == "norm":
        scale.data[0] = torch.nan
    refused = engine.launch(more[0], step=1, lr=1e-2, micro_batch=4, stop=fault == "stop")
    later = [engine.launch(batch_BU, step=2 + i, lr=1e-2, micro_batch=4) for i, batch_BU in enumerate(more[1:])]
    step = refused.read()
    assert step.stop == (fault == "stop")
    assert step.finite == (fault == "stop")
    assert all(launched.read() for launched in later)
    if fault == "norm":
        scale.data[0] = before[list(engine.state()).index("model.norm.weight")][0]
    assert equal(before, bits(engine.state().values()))


@pytest.mark.device
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_for_the_device_between_batch_and_optimizer(method: str, compiles: bool) -> None:
    """PyTorch raises an error if a call waits."""
    this = of(method, weight_decay=1e-2, precision="bfloat16")
    engine = warm_engine(this, micro_batch=4) if compiles else Engine(this, world(), compile=False)
    (batch_BU,) = batches(this, 1)
    engine.step(batch_BU, step=0, lr=1e-2, micro_batch=4)
    torch.cuda.set_sync_debug_mode("error")
    launched = [engine.launch(batch_BU, step=i, lr=1e-2, micro_batch=4) for i in (1, 2)]
    torch.cuda.set_sync_debug_mode("default")
    assert all(one.read().finite for one in launched)


@pytest.mark.device
def test_tf32_has_ten_bits_and_float32_has_more() -> None:
    """The gradient: tf32 rounds each product's operands to 2 ** -11; float32 does not round them."""
    sizes: dict[str, Any] = {"batch_size": 8, "sequence_length": 128, "logits_dtype": "float32"}
    gradients = {}
    for precision, device in (("float32", CPU), ("float32", DEVICE), ("tf32", DEVICE)):
        this = of(precision=precision, **sizes)
        with numerics_for(this.training, device):
            engine = Engine(this, world(device), compile=False)
            engine.step(batches(this, 1)[0], step=0, lr=1e-3, micro_batch=8)
        gradients[precision, device.type] = engine.optimizer.gradient
    exact = gradients["float32", "cpu"]
    assert relative_difference(gradients["float32", "cuda"], exact) < 2e-5
    assert 5e-5 < relative_difference(gradients["tf32", "cuda"], exact) < 1e-2


def test_sigma_reparam_starts_with_the_singular_vectors_of_the_cpu() -> None:
    this = of(attention_norm="sigma-reparam", scale="16M")
    ours, theirs = (Engine(this, world(device), compile=False).objective.model for device in (DEVICE, CPU))
    pairs = [pair for pair in zip(ours.modules(), theirs.modules(), strict=True) if isinstance(pair[0], SigmaLinear)]
    assert len(pairs) == 4 * this.shape.L
    for a, b in pairs:
        assert isinstance(a, SigmaLinear)
        assert isinstance(b, SigmaLinear)
        sigmas = [torch.linalg.vector_norm(x.weight_POI.cpu() @ x.v_PI.cpu()[:, :, None], dim=(1, 2)) for x in (a, b)]
        exact = torch.linalg.matrix_norm(b.weight_POI, ord=2)
        assert torch.allclose(sigmas[0], exact, rtol=1e-5)
        assert torch.allclose(sigmas[1], exact, rtol=1e-5)


@pytest.mark.device
@pytest.mark.parametrize(
    ("method", "attention_norm"), [(m, "qk-norm") for m in METHODS] + [("baseline", norm) for norm in ATTENTION_NORMS]
)
def test_every_kind_of_step_has_deterministic_kernels(method: str, attention_norm: str) -> None:
    """Eager code, which evaluates and is used without a compiler, must not call an operator that is not
    deterministic."""
    this = of(method, attention_norm=attention_norm, deterministic=True, precision="bfloat16")
    with numerics_for(this.training, DEVICE):
        engine = Engine(this, world(), compile=False)
        found = []
        for _ in range(2):
            engine.reset(this)
            trained_by(engine, STEPS, micro_batch=2)
            found.append(bits(engine.state().values()))
    assert equal(*found)

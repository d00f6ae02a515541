"""A step never waits for its device, and can be recorded once and replayed for any cell of its kind."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tape import HostRead, Tape
from tiny import OPTIMIZERS, batches, of
from torch import Tensor

from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.cell import Cell
from search_spaces.methods import METHODS
from trainers import head, qk_clip
from trainers.engine import Engine
from trainers.world import World

DECAYS = [{}, {"weight_decay": 1e-2}, {"weight_decay": 0.1, "weight_decay_mode": "coupled"}]


def recorded(engine: Engine, micro_batch: int) -> tuple[Tape, Tensor, Tensor]:
    """Records a halted step on a tape. Returns the tape, the step's tokens and its metrics."""
    spec = engine.cell.training
    tokens_BU = torch.zeros(spec.batch_size, spec.sequence_length + 1, dtype=torch.int64)
    engine.optimizer.halted.fill_(1.0)
    engine._step(tokens_BU, micro_batch)
    with Tape() as tape:
        metrics_3 = engine._step(tokens_BU, micro_batch)
    return tape, tokens_BU, metrics_3


@pytest.mark.parametrize("fields", DECAYS, ids=["no decay", "independent", "coupled"])
@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_step_works_for_every_cell_of_its_kind(method, fields):
    """One recording is replayed for two cells with other seeds, learning rates and gammas; the results are equal bit
    for bit."""
    engine, eager = (Engine(of(method, **fields), World.single(), compile=False) for _ in range(2))
    tape, tokens_BU, metrics_3 = recorded(engine, micro_batch=2)
    for factor, seed in ((3.0, 5), (0.5, 6)):
        this = of(method, factor, **fields).model_copy(update={"seed": seed})
        assert engine._program_key(2) == eager._program_key(2)
        engine.reset(this)
        eager.reset(this)
        for i, batch_BU in enumerate(batches(this, 4)):
            lr = 1e-2 / (i + 1)
            engine._set_controls(lr, stop=False)
            tokens_BU.copy_(engine.to_device(batch_BU))
            tape.replay()
            loss, stops, norm = metrics_3.tolist()
            assert eager.step(batch_BU, step=i, lr=lr, micro_batch=2) == (loss, norm, stops > 0)
        assert torch.equal(engine.optimizer.values, eager.optimizer.values)
        assert torch.equal(engine.optimizer.exp_avg_sq, eager.optimizer.exp_avg_sq)


@pytest.mark.parametrize("fields", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_recorded_step_of_every_optimizer(fields):
    assert_a_recorded_step_is_the_step(of("baseline", **fields))


@pytest.mark.parametrize("attention_norm", ATTENTION_NORMS)
def test_a_recorded_step_of_every_attention_norm(attention_norm, monkeypatch):
    monkeypatch.setattr(qk_clip, "QK_CLIP_TAU", 0.05)  # the logits of a tiny model exceed it
    assert_a_recorded_step_is_the_step(of("baseline", attention_norm=attention_norm))


def assert_a_recorded_step_is_the_step(this: Cell) -> None:
    engine, eager = (Engine(this, World.single(), compile=False) for _ in range(2))
    tape, tokens_BU, _ = recorded(engine, micro_batch=4)
    engine.reset(this)
    for i, batch_BU in enumerate(batches(this, 3)):
        engine._set_controls(1e-2, stop=False)
        tokens_BU.copy_(engine.to_device(batch_BU))
        tape.replay()
        eager.step(batch_BU, step=i, lr=1e-2, micro_batch=4)
    assert all(torch.equal(a, b) for a, b in zip(engine.state().values(), eager.state().values(), strict=True))


def test_the_tape_detects_a_read():
    with Tape(), pytest.raises(HostRead):
        float(torch.ones(()) + 1)


@pytest.mark.parametrize("fault", ["stop", "loss", "norm"])
@pytest.mark.parametrize("attention_norm", ["qk-norm", "sigma-reparam"])
def test_steps_launched_after_a_skipped_one_leave_no_trace(fault, attention_norm):
    """A step's metrics are read only after the next step was launched."""
    this = of("mu-centering", attention_norm=attention_norm, weight_decay=1e-2)
    engine = Engine(this, World.single(), compile=False)
    batch_BU, *more = batches(this, 4)
    launch = partial(engine.launch, lr=1e-2, micro_batch=4)
    assert launch(batch_BU, step=0).read().finite
    before = {name: tensor.clone() for name, tensor in engine.state().items()}
    norm = engine.objective.model.norm.weight
    if fault == "loss":
        norm.data[0] = torch.nan
    overflows = norm.register_hook(lambda gradient: gradient * (torch.inf if fault == "norm" else 1.0))
    refused = launch(more[0], step=1, stop=fault == "stop")
    overflows.remove()
    if fault == "loss":
        norm.data.copy_(before["model.norm.weight"])
    later = [launch(batch, step=2 + i) for i, batch in enumerate(more[1:])]
    step = refused.read()
    assert step.stop == (fault == "stop")
    assert step.finite == (fault == "stop")
    assert all(launched.read() for launched in later)
    for name, tensor in engine.state().items():
        assert torch.equal(tensor, before[name]), name
    engine.reset(this)
    assert launch(batch_BU, step=0).read().finite
    assert float(engine.optimizer.steps) == 1


@pytest.mark.parametrize("fields", [{"weight_decay": 1e-2}, {"optimizer": "muon"}], ids=["adam", "muon"])
def test_two_halves_of_a_step_with_a_sum_in_between_match_the_step(fields):
    """Several ranks of accelerators replay these halves around the sum of their gradients."""
    this = of("z-loss", **fields)
    whole, halves = (Engine(this, World.single(), compile=False) for _ in range(2))
    for i, batch_BU in enumerate(batches(this, 3)):
        step = whole.step(batch_BU, step=i, lr=1e-2, micro_batch=2)
        halves._set_controls(1e-2, stop=False)
        flags_2 = halves._local_backward(halves.to_device(batch_BU), 2)
        loss, stops, norm = halves._update(flags_2).tolist()
        assert (loss, norm, stops) == (step.loss, step.grad_norm, 0)
    assert torch.equal(whole.optimizer.values, halves.optimizer.values)


@pytest.mark.parametrize("logits_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_the_head_for_accelerators_matches_that_for_cpus(method, precision, logits_dtype, monkeypatch):
    """Compares gradients and losses of ``compute_chunk`` with the head in blocks, over several chunks of unequal
    size."""
    monkeypatch.setattr(head, "MAX_CHUNK_TOKENS", 50)
    this = of(method, precision=precision, logits_dtype=logits_dtype)
    found = []
    for chunk in (None, head.compute_chunk):
        engine = Engine(this, World.single(), compile=False)
        engine.objective.chunk = chunk
        tokens_BU = engine.to_device(batches(this, 1)[0])
        losses = engine.objective(tokens_BU, this.method, engine.gamma)
        losses.objective.backward()
        found.append((losses, engine.optimizer.gradient))
    (blocks, expected), (chunks, gradient) = found
    rounds = "bfloat16" in (precision, logits_dtype)
    assert [float(x) for x in chunks] == pytest.approx([float(x) for x in blocks], rel=1e-6)
    assert float((gradient - expected).norm() / expected.norm()) < (2**-8 if rounds else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "logits_dtype"), [*((method, "bfloat16") for method in METHODS), ("z-loss", "float32")]
)
def test_the_compiled_head_matches_the_eager_one(method, logits_dtype):
    torch._dynamo.reset()
    this = of(method, logits_dtype=logits_dtype)
    engine = Engine(this, World.single(), compile=False)
    tokens_BU = engine.to_device(batches(this, 1)[0])
    found = []
    for chunk in (
        head.compute_chunk,
        torch.compile(head.compute_chunk, dynamic=False, fullgraph=True, options=head.COMPILE_OPTIONS),
    ):
        engine.objective.chunk = chunk
        engine.optimizer.zero_grad()
        losses = engine.objective(tokens_BU, this.method, engine.gamma)
        losses.objective.backward()
        found.append((losses, engine.optimizer.gradient.clone()))
    (eager, expected), (compiled, gradient) = found
    assert [float(x) for x in compiled] == pytest.approx([float(x) for x in eager], rel=1e-6)
    bound = 1e-6 if logits_dtype == "float32" else 2**-8
    assert float((gradient - expected).norm() / expected.norm()) < bound

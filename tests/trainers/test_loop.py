from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tiny import cell

from search_spaces.cell import Cell
from search_spaces.errors import InvalidInput
from search_spaces.methods import METHODS
from search_spaces.record import CellResult, Row
from search_spaces.training_spec import ModelSpec
from trainers import diagnostics, rows, spikes, usage
from trainers.data import Shards, Tokens, batch_windows, write_shard
from trainers.engine import Engine
from trainers.loop import Trainer
from trainers.world import World

TIMES = ("time", "step_seconds", "tokens_per_second", *usage.KEYS)
WORLD = World.single()


def run(trainer: Trainer, cell: Cell, folder: Path, **options: object) -> CellResult:
    return trainer.run(cell, folder, **({"evaluate_every": 4, "checkpoint_every": 2} | options))


def facts(result: CellResult, folder: Path) -> tuple[object, ...]:
    """Returns everything that must be bit-equal between equal runs."""
    lines = [{k: v for k, v in row.to_json().items() if k not in TIMES} for row in rows.read(folder / "metrics.jsonl")]
    return result.state, result.steps, result.val_loss, result.train_loss, result.l_init, lines


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer._engine.state().items()}


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class StopsAfter:
    """A ``should_stop`` that returns True before step ``n``."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


GOLDEN = {"l_init": 5.65625, "train_loss": 5.67699, "val_loss": 4.39693, "grad_norm": 3.11285}


def test_golden_first_step(tokens, folder):
    """The results of one step of a fixed cell. They may only change with the science."""
    result = run(Trainer(WORLD, tokens), cell(steps=1, lr=1e-2, warmup_steps=0, min_lr=1e-2), folder)
    last = rows.read(folder / "metrics.jsonl")[-1]
    got = {name: getattr(result, name, last.metrics.get(name)) for name in GOLDEN}
    assert got == pytest.approx(GOLDEN, abs=2e-4), (
        "One step no longer gives the numbers that it gave. If you changed the model, its initialization, the order "
        "of the data or the optimizer on purpose, then cells from before and after cannot be compared: say so in the "
        f"change log, and put the new numbers into GOLDEN: {got}. Otherwise a refactoring changed the result."
    )


def test_it_learns(tokens, folder):
    result = run(Trainer(WORLD, tokens), cell(steps=40, lr=1e-2), folder, evaluate_every=20)
    assert result.state == "finished"
    assert result.l_init == pytest.approx(math.log(tiny.V), abs=0.2)
    assert result.val_loss < result.l_init - 1
    assert result.tokens == 40 * 4 * tiny.T
    assert not (folder / "checkpoints").exists()
    written = [row.to_json() for row in rows.read(folder / "metrics.jsonl")]
    assert [row["step"] for row in written] == [0, 20, 40]
    there = set(usage.KEYS[: 3 if torch.cuda.is_available() else 2])
    assert set(written[-1]) == {"step", "time", *diagnostics.keys(2)} - set(usage.KEYS) | there
    assert 0 < written[-1]["system/process_cpu_percent"] < 100 * 64
    assert written[-1]["system/process_memory_megabytes"] > 50
    assert not set(usage.KEYS) & set(written[0]), "no training step was taken yet"
    assert written[-1]["val_loss"] == result.val_loss


def test_spike_score_is_the_share_of_steps_that_spiked(tokens, folder, monkeypatch):
    monkeypatch.setattr(spikes, "THRESHOLD_STDS", -1.0)  # so that an ordinary decrease of the loss has some
    run(Trainer(WORLD, tokens), cell(steps=40), folder)
    first, *_, last = (row.metrics for row in rows.read(folder / "metrics.jsonl"))
    assert first["spike_score"] == 0.0
    assert 0 < last["loss_spikes"] < 40
    assert last["spike_score"] == last["loss_spikes"] / 40


def test_record_has_the_columns_of_the_table(tokens, folder):
    record = run(Trainer(WORLD, tokens), cell("z-loss", 1e-4), folder).record()
    columns = (
        "val_loss train_loss l_init steps tokens train_seconds "
        "tokens_per_second output_mu_norm logits_mean logits_std logits_absmean logits_absmax "
        "logits_mean_token_std logits_std_token_std logits_absmax_token_max log_z_squared output_mu_h_cosine "
        "output_mu_h_dot output_b_ratio attention_logit_max loss_spikes spike_score torch"
    )
    assert sorted(record) == sorted(columns.split()), "a finished run has every column but the reason"
    assert None not in record.values()
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_cell_repeats_bit_for_bit_in_a_warm_trainer_after_another(tokens, tmp_path, method):
    this = cell(method.name, method.default_gamma)
    fresh, warm = Trainer(WORLD, tokens), Trainer(WORLD, tokens)
    first = facts(run(fresh, this, tmp_path / "a"), tmp_path / "a")
    run(warm, cell("z-loss", 1e-1, lr=1e-1, seed=7), tmp_path / "b")
    engine = warm._engine
    assert facts(run(warm, this, tmp_path / "c"), tmp_path / "c") == first
    assert warm._engine is engine
    assert_equal_weights(weights(warm), weights(fresh))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.acts_on == "loss"])
def test_a_regularizer_with_a_gamma_of_zero_is_the_baseline_bit_for_bit(tokens, tmp_path, method):
    trainer = Trainer(WORLD, tokens)
    base = facts(run(trainer, cell(), tmp_path / "a"), tmp_path / "a")
    baseline = weights(trainer)
    assert facts(run(trainer, cell(method, 0.0), tmp_path / "b"), tmp_path / "b") == base
    assert_equal_weights(weights(trainer), baseline)


@pytest.mark.parametrize("model", [ModelSpec(), ModelSpec(dropout=0.2)], ids=["plain", "dropout"])
@pytest.mark.parametrize("stops", [1, 5, 6])
def test_resumed_equals_uninterrupted_bit_for_bit(tokens, tmp_path, stops, model):
    this = cell("z-loss", 1e-4, model=model)
    whole = Trainer(WORLD, tokens)
    uninterrupted = facts(run(whole, this, tmp_path / "a"), tmp_path / "a")
    stopped = run(Trainer(WORLD, tokens), this, tmp_path / "b", should_stop=StopsAfter(stops))
    assert (stopped.state, stopped.steps) == ("stopped", stops)
    resumed = Trainer(WORLD, tokens)
    result = run(resumed, this, tmp_path / "b")
    assert facts(result, tmp_path / "b") == uninterrupted
    assert result.train_seconds > stopped.train_seconds
    assert_equal_weights(weights(resumed), weights(whole))


def test_after_a_crash_it_resumes_from_the_previous_checkpoint_without_duplicate_rows(tokens, tmp_path):
    this = cell()
    uninterrupted = facts(run(Trainer(WORLD, tokens), this, tmp_path / "a"), tmp_path / "a")

    class Crash(Exception):
        pass

    def crash(row: Row) -> None:
        if row.step == 4:  # the row is on disk, but not the checkpoint of step 4
            raise Crash

    with pytest.raises(Crash):
        run(Trainer(WORLD, tokens), this, tmp_path / "b", on_row=crash)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "val_l')  # and an incomplete write
    assert facts(run(Trainer(WORLD, tokens), this, tmp_path / "b"), tmp_path / "b") == uninterrupted


def test_a_resumed_cell_keeps_its_micro_batch(tokens, tmp_path):
    memo = tmp_path / "memo.json"
    trainer = Trainer(WORLD, tokens, micro_batch_memo=memo)
    run(trainer, cell(), tmp_path / "run", should_stop=StopsAfter(3))
    (key,) = json.loads(memo.read_text())
    memo.write_text(json.dumps({key: 1}))
    result = run(trainer, cell(), tmp_path / "run", should_stop=StopsAfter(3))
    assert result.state == "stopped"
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-00000006.json")
    assert json.loads(saved.read_text())["progress"]["micro_batch"] == 4


def test_micro_batches_add_up_to_the_batch(tokens, tmp_path):
    """Each penalty counts once, whatever the number of micro batches."""
    for method, gamma in (("mu-loss", 1.0), ("z-loss", 1e-2)):
        engine = Engine(cell(method, gamma, logits_dtype="float32"), WORLD, compile=False)
        batch_BU = tokens.train.read(range(4), tiny.T)
        after = []
        for size in (4, 1):
            engine.reset(engine.cell)
            step = engine.step(batch_BU, step=0, lr=1e-2, micro_batch=size)
            after.append((step.loss, step.grad_norm))
        assert after[0] == pytest.approx(after[1], rel=1e-5)


def test_a_loss_that_is_not_finite_ends_before_the_optimizer_step(tokens, tmp_path):
    engine = Engine(cell("z-loss", 1e38), WORLD, compile=False)
    before = {name: tensor.clone() for name, tensor in engine.state().items()}
    batch_BU = tokens.train.read(range(4), tiny.T)
    assert not engine.step(batch_BU, step=0, lr=1.0, micro_batch=4).finite  # its gradient overflows
    assert_equal_weights(engine.state(), before)
    with torch.no_grad():
        engine.objective.model.E_VD[0, 0] = math.nan
    before = {name: tensor.clone() for name, tensor in engine.state().items()}
    assert math.isnan(engine.step(batch_BU, step=0, lr=1.0, micro_batch=4).loss)
    for name, tensor in engine.state().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_diverged_cell_is_a_result_with_a_reason(tokens, folder):
    result = run(Trainer(WORLD, tokens), cell("z-loss", 1e38), folder)
    assert result.state == "diverged"
    assert "at step 0" in result.reason
    assert result.val_loss == result.l_init
    assert not (folder / "checkpoints").exists()
    json.dumps(result.record(), allow_nan=False)


def test_denormals_are_zeros_while_it_trains(tokens, folder):
    def product() -> float:
        return (torch.tensor(1e-30) * torch.tensor(1e-10)).item()

    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormals")
    seen = []
    run(Trainer(WORLD, tokens), cell(), folder, on_row=lambda row: seen.append(product()))
    assert seen
    assert set(seen) == {0.0}
    assert product() == pytest.approx(1e-40, rel=1e-4)


def test_a_final_loss_above_the_initial_one_is_diverged(tokens, folder):
    result = run(Trainer(WORLD, tokens), cell(lr=30.0, warmup_steps=0, min_lr=30.0), folder)
    assert result.state == "diverged"
    assert result.steps == 8
    assert result.val_loss > result.l_init
    assert "above l_init" in result.reason


def test_the_result_is_of_the_final_validation(tokens, tmp_path):
    """The final validation uses sequences drawn from all of validation, the same for every cell; rows use the first
    sequences."""
    T, N = tiny.T, 30
    trainer = Trainer(WORLD, tokens)
    plain = run(trainer, cell(), tmp_path / "plain")
    for seed in (1, 2):
        result = run(trainer, cell(seed=seed, final_eval_sequences=N), tmp_path / f"final {seed}")
        drawn = batch_windows(0, 0, N, tokens.validation.windows(T))
        assert len(set(drawn.tolist())) == N
        assert drawn.tolist() != list(range(N))
        sequences_NU = torch.from_numpy(tokens.validation.read(drawn, T).astype(np.int64))
        assert result.val_loss == pytest.approx(trainer._engine.loss(sequences_NU, 7), rel=1e-6)
    assert result.state == "finished"
    rows_of = [[row.val_loss for row in rows.read(tmp_path / name / "metrics.jsonl")] for name in ("plain", "final 1")]
    assert rows_of[0] == rows_of[1]
    assert rows_of[0][-1] == plain.val_loss != result.val_loss


def test_the_final_validation_is_read_in_micro_batches(tokens, folder, monkeypatch):
    read, sizes = Shards.read, []

    def watched(self: Shards, indices, T: int):
        if self is tokens.validation:
            sizes.append(len(indices))
        return read(self, indices, T)

    monkeypatch.setattr(Shards, "read", watched)
    run(Trainer(WORLD, tokens), cell(final_eval_sequences=30), folder)
    assert sizes[-8:] == [4] * 7 + [2], "expected 30 sequences at the end, in micro batches of 4"


def test_a_crash_in_the_final_validation_repeats_no_step(tokens, tmp_path, monkeypatch):
    this = cell(final_eval_sequences=30)
    uninterrupted = facts(run(Trainer(WORLD, tokens), this, tmp_path / "a"), tmp_path / "a")

    class Crash(Exception):
        pass

    mean_loss = Engine.mean_loss

    def crash(engine: Engine, batches, N: int) -> float:
        if N == 30:
            next(iter(batches))
            raise Crash
        return mean_loss(engine, batches, N)

    monkeypatch.setattr(Engine, "mean_loss", crash)
    with pytest.raises(Crash):
        run(Trainer(WORLD, tokens), this, tmp_path / "b")
    monkeypatch.setattr(Engine, "mean_loss", mean_loss)
    monkeypatch.setattr(Engine, "launch", lambda *args, **more: pytest.fail("took a step"))
    assert facts(run(Trainer(WORLD, tokens), this, tmp_path / "b"), tmp_path / "b") == uninterrupted


def test_a_final_validation_above_the_initial_loss_is_diverged(tmp_path, folder):
    """The cell learns the first validation sequences, which are the only ones that are evaluated during the run. The
    others have tokens that never occur in training."""
    text = np.arange(20_000) % 50
    never = np.random.default_rng(0).integers(50, tiny.V, 2_000)
    for name, content in (("train", text), ("validation", np.concatenate((text[: 5 * tiny.T], never)))):
        write_shard(tmp_path / f"{name}.bin", content.astype(np.uint16))
    this = cell(steps=40, lr=1e-2, final_eval_sequences=60)
    result = run(Trainer(WORLD, tiny.opened(tmp_path)), this, folder, evaluate_every=20)
    last = rows.read(folder / "metrics.jsonl")[-1].to_json()
    assert last["val_loss"] < result.l_init < result.val_loss
    assert result.state == "diverged"
    assert result.reason == f"final validation loss {result.val_loss:.4f} is above l_init {result.l_init:.4f}"


def test_the_trainer_continues_after_a_diverged_cell(tokens, tmp_path):
    trainer = Trainer(WORLD, tokens)
    first = facts(run(trainer, cell(), tmp_path / "a"), tmp_path / "a")
    assert run(trainer, cell("z-loss", 1e38), tmp_path / "b").state == "diverged"
    assert facts(run(trainer, cell(), tmp_path / "c"), tmp_path / "c") == first


@pytest.mark.parametrize(
    ("tokens_change", "cell_change", "field"),
    [
        ({"V": 512}, {}, "cell.V"),
        ({"digest": "other"}, {}, "cell.data"),
        ({}, {"sequence_length": 4096}, "training.sequence_length"),
        ({}, {"final_eval_sequences": 1000}, "training.final_eval_sequences"),
    ],
)
def test_a_cell_that_does_not_fit_names_the_field(tokens: Tokens, folder, tokens_change, cell_change, field):
    trainer = Trainer(WORLD, dataclasses.replace(tokens, **tokens_change))
    with pytest.raises(InvalidInput) as caught:
        run(trainer, cell(**cell_change), folder)
    assert caught.value.field == field


BFLOAT16_BOUND = 2**-8


def test_bfloat16_autocast_trains_nearly_like_float32(tokens, tmp_path):
    """bfloat16 has 8 bits of precision, so autocast must change each loss, but only by about 2 ** -8."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        this = cell(precision=precision, logits_dtype="float32", lr=1e-2, steps=20)
        result = run(Trainer(WORLD, tokens), this, tmp_path / precision)
        assert result.state == "finished"
        losses[precision] = [result.l_init, result.train_loss, result.val_loss]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=BFLOAT16_BOUND)
    assert losses["bfloat16"] != losses["float32"], "autocast was off"
    assert losses["bfloat16"][2] < losses["bfloat16"][0] - 1


def test_tokens_beyond_15_bits_arrive_whole():
    engine = Engine(cell(), WORLD, compile=False)
    assert engine.to_device(np.array([[65_535, 40_000]], dtype=np.uint16)).tolist() == [[65_535, 40_000]]

"""Two real processes: they compute what one worker computes, and a fault in one of them ends both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.multiprocessing as mp
from numpy.typing import NDArray
from pair import joined
from tiny import cell

from search_spaces.errors import InvalidInput
from trainers import diagnostics, micro_batch, usage
from trainers.engine import Engine
from trainers.loop import Trainer
from trainers.world import World

TIMES = {"step_seconds", "tokens_per_second", *usage.KEYS}
CELL = cell("z-loss", 1e-4, steps=20, batch_size=8, lr=1e-2, logits_dtype="float32")
FINAL = CELL.model_copy(update={"training": CELL.training.model_copy(update={"final_eval_sequences": 31})})


def after_running_out(engine: Engine, rank: int, batch_BU: NDArray[np.uint16]) -> dict[str, Any]:
    """Runs a group whose rank 1 runs out of memory in the middle of a backward pass, and returns its results."""
    micro_batch._estimate_size = micro_batch._try_sizes
    fits, tried, dry_run_step = 1, 0, engine.dry_run_step

    def noted(sequences: int) -> None:
        nonlocal tried
        tried = sequences
        dry_run_step(sequences)

    def run_out(gradient: torch.Tensor) -> None:
        if rank == 1 and tried > fits:
            raise torch.OutOfMemoryError("as a device says it")

    engine.dry_run_step = noted  # type: ignore[method-assign]
    hook = engine.objective.model.blocks[0].norm1.weight.register_hook(run_out)
    engine.reset(CELL)
    found: dict[str, Any] = {"halved": micro_batch.choose(engine, 4, None)}
    tried = 0
    found["after running out"] = list(engine.step(batch_BU, step=0, lr=0.1, micro_batch=1)[:2])
    fits = 0
    try:
        micro_batch.choose(engine, 4, None)
    except torch.OutOfMemoryError as error:
        found["none fits"] = str(error)
    hook.remove()
    return found


def worker(rank: int, folder: Path) -> None:
    """Runs all checks in one pair of processes, because starting a pair takes seconds."""
    with joined(rank, folder) as world:
        trainer = Trainer(world, tiny.opened(folder), micro_batch_memo=folder / "memo.json")
        options = {"evaluate_every": 10, "checkpoint_every": 5}
        found: dict[str, Any] = {}

        def record(name: str, **more: Any) -> None:
            result = trainer.run(more.pop("cell", CELL), folder / more.pop("folder", name), **(options | more))
            E_VD = trainer._engine.objective.model.E_VD
            found[name] = [
                result.state,
                result.steps,
                result.val_loss,
                result.train_loss,
                result.reason,
                float(E_VD.sum()),
            ]
            found[name].append({key: result.metrics[key] for key in set(result.metrics) - TIMES})

        record("first")

        launch = trainer._engine.launch

        def poisoned(batch_BU, **arguments):
            if arguments["step"] == 3 and rank == 1:
                with torch.no_grad():
                    trainer._engine.objective.model.blocks[0].norm1.weight.fill_(math.nan)
            return launch(batch_BU, **arguments)

        trainer._engine.launch = poisoned
        record("nan on one rank")
        trainer._engine.launch = launch

        asked = iter(range(1000))
        record("stopped by one rank", folder="resumed", should_stop=lambda: rank == 1 and next(asked) == 7)
        record("resumed", folder="resumed")
        record("again")
        record("final validation", cell=FINAL)

        engine = trainer._engine
        trainer.memo = None
        engine.reset(CELL)
        batch_BU = trainer.tokens.train.read(range(4 * rank, 4 * rank + 4), tiny.T)
        found["micro batches"] = list(engine.step(batch_BU, step=0, lr=0.1, micro_batch=1)[:2])
        engine.reset(CELL)
        found["one batch"] = list(engine.step(batch_BU, step=0, lr=0.1, micro_batch=4)[:2])

        found |= after_running_out(engine, rank, batch_BU)

        diagnostics.ROW_TOKENS = 2 * tiny.T
        sequences_NU = torch.from_numpy(trainer.tokens.validation.read(range(5), tiny.T)).long()
        for name, of in (("passes of two", world), ("passes of one", World.single())):
            found[name] = diagnostics.measure(engine.objective, sequences_NU, CELL.method, engine.gamma, of)

        try:
            record("odd", cell=cell(batch_size=5))
        except InvalidInput as error:
            found["odd"] = error.field
        (folder / f"found-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("pair")
    tiny.tokens(folder)
    mp.spawn(worker, (folder,), nprocs=2)
    first, second = (json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1))
    return first, second, folder


def test_two_workers_match_one_worker_with_twice_the_batch(found, tmp_path):
    pair, _, folder = found
    torch.set_num_threads(1)
    alone = Trainer(World.single(), tiny.opened(folder)).run(
        CELL, tmp_path / "run", evaluate_every=10, checkpoint_every=5
    )
    assert pair["first"][:2] == [alone.state, alone.steps] == ["finished", 20]
    assert pair["first"][2:4] == pytest.approx([alone.val_loss, alone.train_loss], rel=1e-5)
    looked_at = {key: alone.metrics[key] for key in set(alone.metrics) - TIMES}
    assert pair["first"][-1] == pytest.approx(looked_at, rel=1e-2, abs=1e-4), "both ranks must measure the same batch"


def test_two_workers_share_the_final_validation(found, tmp_path):
    """The number of sequences is odd, so that the shares differ."""
    pair, _, folder = found
    torch.set_num_threads(1)
    alone = Trainer(World.single(), tiny.opened(folder)).run(
        FINAL, tmp_path / "run", evaluate_every=10, checkpoint_every=5
    )
    assert pair["final validation"][:2] == ["finished", 20]
    assert pair["final validation"][2] == pytest.approx(alone.val_loss, rel=1e-5)
    assert pair["final validation"][2] != pair["first"][2]


def test_a_rank_that_runs_out_of_memory_leaves_the_group_in_step_with_less(found):
    for of_rank in found[:2]:
        assert of_rank["halved"] == 1
        assert of_rank["after running out"] == pytest.approx(of_rank["micro batches"], rel=1e-6)
        assert "not even one sequence" in of_rank["none fits"]


def test_both_ranks_return_the_same(found):
    first, second, _ = found
    assert first == second


def test_nan_on_one_rank_stops_both_as_diverged(found):
    for pair in found[:2]:
        state, step, *_, reason, _, _ = pair["nan on one rank"]
        assert (state, step, reason) == ("diverged", 3, "training loss is nan at step 3")


def test_one_rank_that_asks_to_stop_stops_both_and_the_cell_resumes_bit_for_bit(found):
    for pair in found[:2]:
        assert pair["stopped by one rank"][:2] == ["stopped", 7]
        assert pair["resumed"] == pair["first"]


def test_a_cell_repeats_bit_for_bit_in_a_warm_pair(found):
    assert found[0]["again"] == found[0]["first"]


def test_diagnostics_of_two_workers_match_those_of_one(found):
    """There are passes of 2, 2 and 1 sequences: rank 0 has two of them, rank 1 has one."""
    for pair in found[:2]:
        assert pair["passes of two"] == pytest.approx(pair["passes of one"], rel=1e-12, abs=1e-14)


def test_accumulated_micro_batches_match_the_batch(found):
    assert found[0]["micro batches"] == pytest.approx(found[0]["one batch"], rel=1e-5)


def test_a_batch_that_two_ranks_cannot_divide_names_the_field(found):
    assert found[0]["odd"] == "training.batch_size"


def test_only_rank_0_writes(found):
    _, _, folder = found
    steps = [json.loads(line)["step"] for line in (folder / "first" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 10, 20]
    assert list(json.loads((folder / "memo.json").read_text()).values()) == [4]

"""Weights that are kept after a run: which steps, of which cell, and what a fault leaves of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import cell
from torch import Tensor

from search_spaces.cell import Cell
from search_spaces.keep_weights import KeepWeights
from search_spaces.record import CellResult
from search_spaces.training_spec import ModelSpec
from trainers import tensor_files, weights
from trainers.loop import Trainer
from trainers.world import World

WORLD = World.single()
LAST, EVERY_3 = KeepWeights(last=True), KeepWeights(last=True, every=3)


def run(trainer: Trainer, this: Cell, folder: Path, keep: KeepWeights = LAST, **options: object) -> CellResult:
    given = {"evaluate_every": 4, "checkpoint_every": 2, "keep_weights": keep} | options
    return trainer.run(this, folder, **given)


def kept(folder: Path, this: Cell) -> dict[int, dict[str, Tensor]]:
    """Returns the weights by step, after comparing each file with its digest."""
    found = list(weights.find_kept(folder / "weights", this.id))
    for one in found:
        assert one.cell == this
        tensor_files.read_verified(one.path, this.id)
    return {one.step: load_file(one.path) for one in found}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def stop_after(steps: int):
    """A ``should_stop`` that returns True before step ``steps``."""
    asked = iter([False] * steps + [True])
    return asked.__next__


def assert_equal(found: dict[int, dict[str, Tensor]], expected: dict[int, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for step in found:
        torch.testing.assert_close(found[step], expected[step], rtol=0, atol=0)


def test_none_are_kept_unless_requested(tokens, folder):
    Trainer(WORLD, tokens).run(cell(), folder, evaluate_every=4, checkpoint_every=2)
    assert names(folder) == ["metrics.jsonl"]


@pytest.mark.parametrize("tied", [False, True])
def test_the_last_weights_are_those_of_the_model(tokens, folder, tied):
    trainer, this = Trainer(WORLD, tokens), cell(model=ModelSpec(tied=tied))
    run(trainer, this, folder)
    model = trainer._engine.objective.model
    found = kept(folder, this)
    assert_equal(found, {8: dict(model.state_dict())})
    E_VD = found[8][weights.TIED if tied else weights.OUTPUT]
    assert torch.equal(E_VD, model.E_VD)
    assert names(folder / "weights") == ["step-00000008.json", "step-00000008.safetensors"]


def test_the_json_describes_the_weights(tokens, folder):
    this = cell("z-loss", 1e-4)
    run(Trainer(WORLD, tokens), this, folder)
    content = json.loads((folder / "weights" / "step-00000008.json").read_text())
    assert (content["cell"], content["step"]) == (this.id, 8)
    assert content["shape"] == asdict(this.shape)
    assert content["spec"] == this.model_dump(mode="json")
    assert content["tensors"]["lm_head.weight"] == {"dtype": "float32", "shape": [this.V, this.shape.D]}
    assert content["tensors"].keys() == load_file(folder / "weights" / "step-00000008.safetensors").keys()


def test_weights_are_kept_every_n_steps_and_at_the_end(tokens, tmp_path):
    trainer, this = Trainer(WORLD, tokens), cell()
    first = run(trainer, this, tmp_path / "a", EVERY_3)
    assert list(kept(tmp_path / "a", this)) == [3, 6, 8]
    second = run(trainer, this, tmp_path / "b", KeepWeights())
    assert first.val_loss == second.val_loss, "keeping weights must not change a result"
    three = run(trainer, cell(steps=3), tmp_path / "c")
    assert three.state == "finished"
    assert list(kept(tmp_path / "c", cell(steps=3))) == [3]


def test_a_diverged_cell_keeps_its_last_weights(tokens, folder):
    this = cell("z-loss", 1e38)
    assert run(Trainer(WORLD, tokens), this, folder).state == "diverged"
    assert list(kept(folder, this)) == [0]


def test_a_stopped_cell_keeps_its_checkpoint_and_resumes_to_the_same_weights(tokens, tmp_path):
    trainer, this = Trainer(WORLD, tokens), cell()
    run(trainer, this, tmp_path / "a", EVERY_3)
    assert run(trainer, this, tmp_path / "b", EVERY_3, should_stop=stop_after(5)).state == "stopped"
    assert list(kept(tmp_path / "b", this)) == [3]
    assert run(trainer, this, tmp_path / "b", EVERY_3).state == "finished"
    assert_equal(kept(tmp_path / "b", this), kept(tmp_path / "a", this))


def test_a_run_that_resumes_before_kept_weights_writes_them_again(tokens, tmp_path):
    """The previous run was killed between the weights of step 6 and the next checkpoint."""
    trainer, this = Trainer(WORLD, tokens), cell()
    run(trainer, this, tmp_path / "a", EVERY_3)
    run(trainer, this, tmp_path / "b", EVERY_3, should_stop=stop_after(5))  # leaves a checkpoint of step 5
    for step in (6, 7):
        tensor_files.write(
            tensor_files.path_for(tmp_path / "b" / "weights", step),
            lambda path: path.write_bytes(b"of another run"),
            cell=this.id,
            step=step,
            content={"spec": this.model_dump(mode="json")},
        )
    (tmp_path / "b" / "weights" / "step-00000003.tensors-tmp").write_bytes(b"torn")
    run(trainer, this, tmp_path / "b", EVERY_3)
    assert_equal(kept(tmp_path / "b", this), kept(tmp_path / "a", this))
    assert names(tmp_path / "b") == names(tmp_path / "a")


def test_a_run_from_the_start_removes_earlier_weights(tokens, tmp_path):
    trainer, this = Trainer(WORLD, tokens), cell()
    run(trainer, this, tmp_path, EVERY_3)
    run(trainer, this, tmp_path, KeepWeights())  # it has no checkpoints, so it starts again
    assert names(tmp_path) == ["metrics.jsonl"]
    assert not (tmp_path / "weights").exists()


def test_damaged_weights_are_named_and_skipped(tokens, folder):
    this = cell()
    run(Trainer(WORLD, tokens), this, folder, EVERY_3)
    (folder / "weights" / "step-00000003.json").unlink()
    torn = folder / "weights" / "step-00000006.json"
    torn.write_text(torn.read_text()[:40])
    last = folder / "weights" / "step-00000008.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="skipped") as warned:
        found = list(weights.find_kept(folder / "weights", this.id))
    assert [str(one.message).rpartition(": ")[2] for one in warned] == [
        "its JSON file is missing, so it was never completed",
        "its JSON file is torn",
    ]
    assert [one.step for one in found] == [8]
    with pytest.raises(tensor_files.DamagedFile, match="SHA-256"):
        tensor_files.read_verified(found[0].path, this.id)
    with pytest.warns(UserWarning, match=f"belongs to cell {this.id}, not another"):
        assert not [one for one in weights.find_kept(folder / "weights", "another") if one.step == 8]

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from trainers import checkpoint

CELL = "0123456789ab"


def save(folder: Path, step: int) -> None:
    checkpoint.save(folder, CELL, step, {"model.E": torch.full((4, 3), float(step))}, {"step": step, "lr": 0.1})


def step_of(found: checkpoint.Checkpoint | None) -> int | None:
    if found is None:
        return None
    assert torch.equal(found.tensors["model.E"], torch.full((4, 3), float(found.progress["step"])))
    return found.progress["step"]


def test_round_trip_keeps_the_two_newest(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step)
    found = checkpoint.load_latest(tmp_path, CELL)
    assert step_of(found) == 15
    assert found.progress == {"step": 15, "lr": 0.1}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}.{kind}" for step in (10, 15) for kind in ("json", "safetensors")
    ]


def test_no_checkpoint(tmp_path):
    assert checkpoint.load_latest(tmp_path / "nowhere", CELL) is None


def flip_a_byte(data: Path) -> None:
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)


DAMAGES = {
    "a flipped byte": (flip_a_byte, "SHA-256"),
    "half the tensors": (lambda data: data.write_bytes(data.read_bytes()[:-20]), "SHA-256"),
    "no tensors": (lambda data: data.write_bytes(b""), "SHA-256"),
    "no JSON": (lambda data: data.with_suffix(".json").unlink(), "never completed"),
    "half the JSON": (lambda data: data.with_suffix(".json").write_text('{"cell": "01'), "torn"),
    "a JSON list": (lambda data: data.with_suffix(".json").write_text("[]"), "torn"),
    "another cell's": (
        lambda data: data.with_suffix(".json").write_text(
            json.dumps(json.loads(data.with_suffix(".json").read_text()) | {"cell": "other"})
        ),
        "belongs to cell other",
    ),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(tmp_path, damage, why):
    save(tmp_path, 5)
    save(tmp_path, 10)
    damage(tmp_path / "step-00000010.safetensors")
    with pytest.warns(UserWarning, match=rf"step-00000010.safetensors skipped: .*{why}"):
        assert step_of(checkpoint.load_latest(tmp_path, CELL)) == 5


def test_leftovers_of_a_crash_are_skipped_and_removed(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "step-00000010.tensors-tmp").write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_of(checkpoint.load_latest(tmp_path, CELL)) == 5
    save(tmp_path, 15)
    assert not list(tmp_path.glob("*tmp"))


def test_remove(tmp_path):
    save(tmp_path / "checkpoints", 5)
    checkpoint.remove(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()
    checkpoint.remove(tmp_path / "checkpoints")

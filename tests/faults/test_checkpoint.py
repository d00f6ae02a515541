"""A process killed at every point of writing a checkpoint: it resumes from the previous one and never reads a torn
one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from search_spaces.keep_weights import KeepWeights
from search_spaces.record import Row
from tests.faults.dying import INTERVALS, exit_code, train, train_until, train_within
from tests.trainers import tiny
from trainers.loop import Trainer
from trainers.storage.files import sha256
from trainers.world import World

pytestmark = pytest.mark.slow

MOST = 100
"""An upper bound on the operations on the last checkpoint, including its removal at the end of the cell."""
TORN = {"tensors-tmp", "json-tmp", "safetensors"}
"""Suffixes of the files that a kill can leave behind."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    tiny.tokens(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> float | None:
    return train(tmp_path_factory.mktemp("undisturbed"), tokens).val_loss


def whole(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints that have both of their files."""
    files = [path for path in (folder / "checkpoints").glob("*.json") if path.with_suffix(".safetensors").exists()]
    return sorted(json.loads(path.read_text())["step"] for path in files)


def resumes(folder: Path, tokens: Path, undisturbed: float | None) -> None:
    """Checks that the cell resumes from its newest complete checkpoint, reaches the undisturbed loss, and leaves no
    files."""
    last = max(whole(folder), default=0)
    rows: list[Row] = []
    result = train(folder, tokens, rows)
    assert result.state == "finished"
    assert [row.step for row in rows] == [step for step in (0, 4, 8) if step > last or not last]
    assert result.val_loss == undisturbed
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 4, 8], "a row is missing or duplicated"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl"]


@pytest.mark.filterwarnings("ignore:checkpoint .* skipped. its JSON file is missing:UserWarning")
def test_killed_before_each_operation_on_a_checkpoint(
    tokens: Path, undisturbed: float | None, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seen: set[str] = set()
    for operation in range(1, MOST):
        folder = tmp_path / str(operation)
        code = exit_code(train_until, folder, tokens, operation)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        names = [path.name for path in (folder / "checkpoints").glob("*")]
        seen |= {
            kind for kind in TORN if any(name.startswith("step-00000006") and name.endswith(kind) for name in names)
        }
        resumes(folder, tokens, undisturbed)
    record_property("fault", ("SIGKILL while a checkpoint is written", operation - 1))
    assert code == 0, f"the cell needs more than {MOST} operations: raise MOST"
    assert seen == TORN, "the kills did not leave every kind of torn checkpoint"


@pytest.mark.filterwarnings("ignore:checkpoint .* skipped. its JSON file is missing:UserWarning")
def test_killed_before_each_operation_on_kept_weights(
    tokens: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Covers the weights of step 6, where a checkpoint is written too, and the weights at the end of the cell."""
    every = KeepWeights(last=True, every=3)
    train(tmp_path / "undisturbed", tokens, keep_weights=every)

    def kept(folder: Path) -> dict[str, str]:
        return {path.name: sha256(path) for path in (folder / "weights").iterdir()}

    seen: set[str] = set()
    for operation in range(1, MOST):
        folder = tmp_path / str(operation)
        code = exit_code(train_until, folder, tokens, operation, "weights", every)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        seen |= {kind for kind in TORN for path in (folder / "weights").glob("step-00000006*") if kind in path.name}
        train(folder, tokens, keep_weights=every)
        assert kept(folder) == kept(tmp_path / "undisturbed")
        assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", "weights"]
    record_property("fault", ("SIGKILL while weights are kept", operation - 1))
    assert code == 0, f"the cell needs more than {MOST} operations: raise MOST"
    assert seen == TORN, "the kills did not leave every kind of torn file"


@pytest.mark.fault("SIGKILL while a checkpoint is written")
@pytest.mark.parametrize("bytes_", [1, 5_000, 50_000])
def test_killed_in_the_middle_of_writing_the_tensors(
    tokens: Path, undisturbed: float | None, tmp_path: Path, bytes_: int
) -> None:
    """The first file above the limit is torn: the row before the first step, or the first checkpoint."""
    assert exit_code(train_within, tmp_path, tokens, bytes_) == -signal.SIGXFSZ
    assert whole(tmp_path) == []
    resumes(tmp_path, tokens, undisturbed)


@pytest.mark.fault("a flipped byte in a checkpoint")
def test_a_flipped_byte_in_a_checkpoint_is_named_and_the_previous_one_used(
    tokens: Path, undisturbed: float | None, tmp_path: Path
) -> None:
    asked = iter([False] * 5 + [True])
    trainer = Trainer(World.single(), tiny.opened(tokens))
    trainer.run(tiny.cell(), tmp_path, **INTERVALS, should_stop=asked.__next__)
    assert whole(tmp_path) == [4, 5]
    newest = tmp_path / "checkpoints" / "step-00000005.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    rows: list[Row] = []
    with pytest.warns(UserWarning, match=rf"{newest.name} skipped: its content does not match"):
        result = train(tmp_path, tokens, rows)
    assert [row.step for row in rows] == [8]
    assert result.val_loss == undisturbed

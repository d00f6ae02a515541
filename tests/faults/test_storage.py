"""Storage that is full, read-only or modified by others: the error names the file, nothing is lost, and a rerun
resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.invariants import nothing_left_over
from search_spaces.plan import Plan
from search_spaces.record import CellResult, Row
from search_spaces.study import Study
from service.home.ledger import Ledger
from tests.faults.storage import fill, mounted, remount
from tests.service.oec import oec
from tests.trainers import tiny
from trainers.loop import Trainer
from trainers.storage.files import write_atomically
from trainers.world import World

pytestmark = pytest.mark.slow

CELLS = Plan(Study.load("short"), "data").cells


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yields a file system of 256 KiB."""
    with mounted(tmp_path / "small", "256k"):
        yield tmp_path / "small"


@pytest.mark.fault("storage full")
def test_a_ledger_on_full_storage_is_unchanged_and_continues_once_there_is_room(small: Path) -> None:
    path = small / "ledger.jsonl"
    with Ledger(path, "short", write=True) as ledger:
        ledger.plan(CELLS[:2])
        fill(small, leaving=0)
        before = path.read_bytes()
        long = CellResult(state="crashed", reason="x" * 20_000)  # part of this line fits
        with pytest.raises(OSError, match="No space left on device"):
            ledger.end(CELLS[0].id, long)
        assert path.read_bytes() == before, "part of a line was left"
        assert ledger.entries[CELLS[0].id].state == "planned"
        (small / "filler").unlink()
        ledger.end(CELLS[0].id, long)
        ledger.end(CELLS[1].id, CellResult(state="finished", val_loss=1.0))
        assert Ledger(path, "short").records() == ledger.records()


@pytest.mark.fault("storage read-only")
def test_an_error_names_the_file_that_cannot_be_written(small: Path) -> None:
    remount(small, "ro")
    path = small / "metrics.jsonl"
    with pytest.raises(OSError, match=rf"Read-only file system: '{path}'"):
        write_atomically(path, "{}\n")


@pytest.mark.fault("storage full")
def test_a_cell_on_full_storage_names_the_error_and_resumes_once_there_is_room(small: Path, tmp_path: Path) -> None:
    """The last complete checkpoint is kept and the torn one removed, so that there is room for the ledger's line."""
    tokens = tiny.tokens(tmp_path)
    intervals = {"evaluate_every": 4, "checkpoint_every": 2}
    trainer = Trainer(World.single(), tokens)
    undisturbed = trainer.run(tiny.cell(), tmp_path / "undisturbed", **intervals)
    remount(small, "size=64m")

    def last_checkpoint_does_not_fit(row: Row) -> None:
        if row.step == 4:
            fill(small, leaving=64 * 1024)

    with pytest.raises(Exception, match="No space left on device"):
        trainer.run(tiny.cell(), small / "cell", **intervals, on_row=last_checkpoint_does_not_fit)
    left = sorted(path.name for path in (small / "cell" / "checkpoints").iterdir())
    assert left == ["step-00000002.json", "step-00000002.safetensors"]
    (small / "filler").unlink()
    rows: list[float] = []
    resumed = trainer.run(tiny.cell(), small / "cell", **intervals, on_row=lambda row: rows.append(row.step))
    assert rows == [4, 8], "the cell did not resume from its checkpoint"
    assert resumed.val_loss == undisturbed.val_loss


def text_study(folder: Path) -> Path:
    """Writes a study with its own short text, which is tokenized quickly."""
    (folder / "text.txt").write_text("to be or not to be, that is the question\n" * 1000)
    data = {"source": "text", "path": str(folder / "text.txt"), "tokenizer": "bytes"}
    study = yaml.safe_load(Study.load("smoke").to_yaml()) | {"name": "mine", "data": data}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


@pytest.mark.fault("storage full")
@pytest.mark.parametrize("leaving", [0, 4096])
def test_a_study_on_a_full_home_is_refused_and_leaves_nothing_half_done(
    small: Path, tmp_path: Path, leaving: int
) -> None:
    home = small / "home"
    assert oec("data", "prepare", text_study(tmp_path), home=home).returncode == 0
    fill(small, leaving)
    done = oec("run", tmp_path / "study.yaml", home=home)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert "free some space, then re-run the same command to resume" in done.stderr
    assert "Traceback" not in done.stderr
    nothing_left_over(home)


@pytest.mark.fault("storage read-only")
def test_a_study_on_a_read_only_home_is_refused(small: Path, tmp_path: Path) -> None:
    home = small / "home"
    assert oec("data", "prepare", text_study(tmp_path), home=home).returncode == 0
    remount(small, "ro")
    done = oec("run", tmp_path / "study.yaml", home=home)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"--home: '{home}' is not writable (Read-only file system)" in done.stderr


@pytest.mark.fault("a flipped byte in a token shard")
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_flipped_byte_in_the_tokens_is_refused_with_the_file_name(tmp_path: Path, split: str) -> None:
    home = tmp_path / "home"
    assert oec("data", "prepare", text_study(tmp_path), home=home).returncode == 0
    (shard,) = home.glob(f"data/*/{split}-00000.bin")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = oec("run", tmp_path / "study.yaml", home=home)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{shard}' has changed since it was written" in done.stderr
    assert not (home / "studies" / "mine").exists()

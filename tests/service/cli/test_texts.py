"""Real-world texts: files that are not UTF-8, names that are not UTF-8, and Ctrl-C during unbroken text."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.service.oec import invoked, oec, start

TRAINING = {"steps": 6, "batch_size": 2, "sequence_length": 32, "warmup_steps": 1, "eval_sequences": 2}
LINES = "to be or not to be, café\n" * 300


def study(folder: Path, texts: Path, **data: object) -> Path:
    content = {
        "name": "texts",
        "scales": ["tiny"],
        "data": {"source": "text", "path": str(texts), "tokenizer": "bytes"} | data,
        "methods": ["baseline"],
        "lrs": [1e-2],
        "training": TRAINING,
    }
    path = folder / "texts.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ({f"{n}.txt": LINES.encode("latin-1") for n in range(8)}, "8 of 10 files are not UTF-8 text, such as 0.txt"),
        ({"nul.txt": b"a\0b"}, "1 of 3 files is not UTF-8 text, such as nul.txt"),
        ({"utf16.txt": LINES.encode("utf-16")}, "1 of 3 files is not UTF-8 text, such as utf16.txt"),
        ({"empty.txt": b"", "space.txt": b" \n"}, "2 of 4 files are empty, such as empty.txt"),
    ],
)
def test_files_that_are_left_out_are_reported(tmp_path: Path, broken: dict[str, bytes], line: str) -> None:
    """Preparation reports it, so does a plan on existing tokens, and it is in the manifest."""
    texts, home = tmp_path / "texts", tmp_path / "home"
    texts.mkdir()
    for name, content in (broken | {"a.txt": LINES.encode(), "b.txt": LINES.encode()}).items():
        (texts / name).write_bytes(content)
    path = study(tmp_path, texts)
    for command in (["data", "prepare"], ["plan"]):
        assert f"{line}: left out" in invoked(*command, path, home=home).stdout
    (manifest,) = home.glob("data/*/manifest.json")
    assert json.loads(manifest.read_text())["left_out"] == [f"{line}: left out"]


def test_nothing_is_reported_if_everything_is_used(tmp_path: Path) -> None:
    done = invoked("plan", "smoke", home=tmp_path / "home")
    assert done.returncode == 0
    assert "left out" not in done.stdout


def not_utf8(folder: Path, *names: bytes) -> Path:
    """Writes files with these names to a folder. Most file systems allow all bytes in names except / and NUL."""
    for name in (*names, b"plain.txt"):
        path = folder / "in" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LINES)
    return folder / "in"


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"f\xf6lder/x.txt", b"\xff\xfe", b"new\nline\x80.txt"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_files_whose_names_are_not_utf8_are_read(tmp_path: Path, name: bytes, tokenizer: str) -> None:
    texts = not_utf8(tmp_path, name)
    vocabulary = {"vocab_size": 260} if tokenizer == "bpe" else {}
    done = oec("plan", study(tmp_path, texts, tokenizer=tokenizer, **vocabulary), home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "tokenizing 2 documents" in done.stdout


def test_a_file_left_out_whose_name_is_not_utf8_is_named(tmp_path: Path) -> None:
    texts = not_utf8(tmp_path, b"a.txt", b"b.txt")
    (texts / os.fsdecode(b"caf\xe9.txt")).write_bytes(LINES.encode("latin-1"))
    for encoding in ("utf-8", "latin-1", "ascii"):
        done = oec("plan", study(tmp_path, texts), home=tmp_path / "home", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert "such as caf\\udce9.txt: left out" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (b"plan", b"caf\xe9.yaml"),
        (b"report", b"caf\xe9.csv"),
        (b"diff", b"published", b"caf\xe9.csv"),
        (b"data", b"prepare", b"caf\xe9.txt"),
        (b"report", b"published", b"--out", b"caf\xe9"),
        (b"plan", b"smoke", b"--home", b"caf\xe9"),
        (b"analyze", b"--weights", b"caf\xe9.npy"),
    ],
)
def test_an_argument_that_is_not_utf8_is_refused(tmp_path: Path, arguments: tuple[bytes, ...]) -> None:
    done = oec(*map(os.fsdecode, arguments), home=tmp_path / "home", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "caf\\\\udce9" in done.stderr
    assert "is not valid UTF-8" in done.stderr


def test_a_home_in_a_folder_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"f\xf6lder")
    place.mkdir()
    for given in (f"{place}/home", "home"):  # the second is relative to the working directory
        done = oec("plan", "smoke", home=tmp_path, cwd=place, OEC_HOME=given)
        assert done.returncode == 2, done.stderr
        assert "f\\udcf6lder" in done.stderr
        assert "is not valid UTF-8" in done.stderr


def test_documents_of_a_source_with_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    texts = not_utf8(tmp_path, b"caf\xe9.txt")
    done = oec("data", "prepare", texts, "--tokenizer", "bytes", "--val-tokens", 50, home=tmp_path / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 2 documents" in done.stdout


def test_rows_without_text_are_counted(tmp_path: Path) -> None:
    rows = [{"text": text} for text in (LINES, None, "", LINES, " " * 1_200_000 + "end")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--tokenizer", "bytes", "--val-tokens", 50)
    done = oec("data", "prepare", tmp_path / "a.jsonl", *options, home=tmp_path / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rows without text were left out" in done.stdout
    assert "of 3 documents" in done.stdout


@pytest.mark.parametrize("alphabet", ["ACGT", " ", "="])
def test_ctrl_c_works_during_unbroken_text(tmp_path: Path, alphabet: str) -> None:
    """Training BPE with 65,536 ids on four million letters takes a minute or more, so only a signal can end it
    sooner."""
    texts, log = tmp_path / "texts", tmp_path / "log"
    texts.mkdir()
    for number in range(10):
        text = "".join(random.Random(number).choices(alphabet, k=400_000))
        (texts / f"{number}.txt").write_text(f"{text}\nword {number}\n")
    path = study(tmp_path, texts, tokenizer="bpe", vocab_size=65_536 if alphabet == "ACGT" else 260)
    process = start("data", "prepare", path, home=tmp_path / "home", log=log)
    try:
        deadline = time.monotonic() + 60
        while "tokenizing" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        code = process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert (code, time.monotonic() - asked < 5) == (75, True), log.read_text()
    assert "interrupted; re-run the same command" in log.read_text()
    assert not list((tmp_path / "home" / "data").iterdir())

"""``oec data prepare`` for data sets and files, on the real command: kill and resume, output, and rejected input."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from search_spaces.data_spec import DataSpec
from service.cli.prepare import Progress
from tests import fineweb, hub
from tests.service.cli.test_bad_input import refused
from tests.service.oec import invoked, oec, start
from trainers.data import prepare

SIZES = ("--shard-tokens", 20_000, "--val-tokens", 10_000)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fineweb.write(tmp_path_factory.mktemp("fineweb"), fineweb.texts(400))


def finished(folder: Path) -> list[str]:
    """Returns the names of the files that the manifest lists."""
    manifest = folder / "manifest.json"
    return [file["name"] for file in json.loads(manifest.read_bytes())["files"]] if manifest.exists() else []


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the inode and modification time of each finished file, by name."""
    stats = {name: (folder / name).stat() for name in finished(folder)}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def begun(*arguments: object, out: Path, files: int, home: Path, log: Path, **more: str) -> subprocess.Popen[bytes]:
    """Starts the command in the background and waits until it has finished ``files`` files."""
    process = start("data", "prepare", *arguments, "--out", out, home=home, log=log, **more)
    deadline = time.monotonic() + 180
    while len(finished(out)) < files:
        assert process.poll() is None, f"the command ended too early: {log.read_text()}"
        assert time.monotonic() < deadline, f"the command took too long to finish {files} files: {log.read_text()}"
        time.sleep(0.01)
    return process


def test_killed_twice_it_still_writes_the_same_files(source: str, gpt2_cache: Path, tmp_path: Path) -> None:
    """The files are byte-identical to those of an uninterrupted run with another number of threads, and no finished
    file is rewritten."""
    home, killed, whole = tmp_path / "home", tmp_path / "killed", tmp_path / "whole"
    cache = {"TIKTOKEN_CACHE_DIR": str(gpt2_cache)}
    kept: dict[str, tuple[int, int]] = {}
    for files in (2, 9):
        process = begun(source, *SIZES, out=killed, files=files, home=home, log=tmp_path / "log", **cache)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert stamps(killed).items() >= kept.items(), "a finished file was rewritten"
        kept = stamps(killed)
    assert not json.loads((killed / "manifest.json").read_bytes())["complete"], "the command was killed too late"

    last = oec("data", "prepare", source, *SIZES, "--out", killed, "--workers", 2, home=home, **cache)
    assert last.returncode == 0, last.stdout + last.stderr
    assert f"verified {len(kept)} files" in last.stdout
    assert stamps(killed).items() >= kept.items(), "a finished file was rewritten"
    other = oec("data", "prepare", source, *SIZES, "--out", whole, "--workers", 1, home=home, **cache)
    assert other.returncode == 0, other.stdout + other.stderr
    made, expected = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (killed, whole))
    assert made.keys() == expected.keys()
    assert made == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_when_interrupted_it_says_how_to_resume(number: signal.Signals, source: str, tmp_path: Path) -> None:
    arguments, log = (source, *SIZES, "--tokenizer", "bytes"), tmp_path / "log"
    process = begun(*arguments, out=tmp_path / "out", files=1, home=tmp_path / "home", log=log)
    process.send_signal(number)
    assert process.wait(timeout=60) == 75, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last == "interrupted; re-run the same command to resume after the last complete file"


def test_the_output_is_the_data_section_of_a_study(source: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = oec("data", "prepare", source, "--tokenizer", "bytes", *SIZES, "--tokens", 55_000, home=home)
    assert result.returncode == 0, result.stdout + result.stderr
    data = yaml.safe_load(result.stdout[result.stdout.index("data: ") :])["data"]
    tokens = prepare(DataSpec.model_validate(data), tmp_path / "other")
    assert (tokens.validation.tokens, tokens.train.tokens, tokens.vocab_size) == (10_000, 45_000, 256)
    assert tokens.train.paths[0].is_relative_to(home / "data")


BAD = {
    "no such file": (("nowhere.parquet",), ("SOURCE", "'nowhere.parquet' matches no file", "give a study")),
    "no such glob": (("nowhere/*.jsonl",), ("SOURCE", "matches no file")),
    "no name of anything": (("nowhere",), ("SOURCE", "'nowhere'", "OWNER/NAME")),
    "no such study": (("nowhere.yaml",), ("study", "nowhere.yaml", "demo")),
    "mixed kinds": (("IN/mixed",), ("SOURCE", "different formats (json, text)", "glob")),
    "no parquet": (("IN/no.parquet",), ("SOURCE", "no.parquet", "cannot be read (ArrowInvalid")),
    "no JSON": (("IN/no.jsonl",), ("SOURCE", "no.jsonl", "cannot be read")),
    "no text": (("IN/latin.txt",), ("SOURCE", "latin.txt", "UnicodeDecodeError")),
    "no such column": (("GOOD", "--column", "txt"), ("--column", "'txt' is not a column", "columns: text, id")),
    "column of numbers": (("GOOD", "--column", "token_count"), ("--column", "'token_count'", "int64, not text")),
    "no such split": (("GOOD", "--split", "test"), ("--split", "'test'", "train")),
    "config of files": (("GOOD", "--config", "a"), ("--config", "'a'", "omit it")),
    "unknown tokenizer": (("GOOD", "--tokenizer", "gpt5"), ("--tokenizer", "'gpt5'", "bytes, gpt2")),
    "no shard size": (("GOOD", "--shard-tokens", "0"), ("--shard-tokens", "0", "1 or more")),
    "negative validation": (("GOOD", "--val-tokens", "-5"), ("--val-tokens", "-5", "1 or more")),
    "all for validation": (("GOOD", "--tokens", "10000"), ("--tokens", "10000", "lower --val-tokens")),
    "source too small": (("GOOD", "--val-tokens", "999999999"), ("--val-tokens", "999999999", "the source has")),
    "no workers": (("GOOD", "--workers", "0"), ("--workers", "0", "1 or more")),
    "out is a file": (("GOOD", "--out", "IN/latin.txt"), ("--out", "latin.txt", "cannot be written to (File exists)")),
    "option of a study": (("smoke", "--column", "a"), ("--column", "'a'", "study")),
    "out of a study": (("smoke", "--out", "a"), ("--out", "'a'", "study")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, source: str, tmp_path: Path) -> None:
    arguments, parts = BAD[name]
    files = tmp_path / "in"
    (files / "mixed").mkdir(parents=True)
    for path, content in (
        ("mixed/a.jsonl", b"{}"), ("mixed/b.txt", b"b"), ("no.parquet", b"no"), ("no.jsonl", b"no"),
        ("latin.txt", b"caf\xe9 au lait"),
    ):  # fmt: skip
        (files / path).write_bytes(content)
    given = [argument.replace("IN/", f"{files}/").replace("GOOD", source) for argument in arguments]
    usual = () if name.endswith("study") else ("--tokenizer", "bytes", *SIZES)
    result = invoked("data", "prepare", given[0], *usual, *given[1:], home=tmp_path / "home")
    refused(result, tmp_path / "home", *parts)
    left = [path.name for path in (tmp_path / "home").glob("data/*") if path.suffix != ".lock"]
    assert not left, "only the lock file of a removed folder may be left"


CARD = """---
configs:
- config_name: default
  data_files: [{split: train, path: data/*/*}]
- config_name: sample-10BT
  data_files: [{split: train, path: sample/10BT/*}]
---
"""


def test_fineweb_from_the_hub(tmp_path: Path) -> None:
    """The data set is given by its short name and served over HTTP in FineWeb's layout. The command is killed and
    resumes at the pinned commit."""
    texts, repository, home = fineweb.texts(200), tmp_path / "repository", tmp_path / "home"
    fineweb.write(repository / "sample" / "10BT", texts)
    fineweb.write(repository / "data" / "CC-MAIN-2013-20", ["not of the sample"])
    (repository / "README.md").write_text(CARD)
    sizes = ("--tokenizer", "bytes", *SIZES)
    with hub.serve("HuggingFaceFW/fineweb", repository) as endpoint:
        network = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub")}
        out = home / "data" / "fineweb"
        process = begun("fineweb", *sizes, out=out, files=3, home=home, log=tmp_path / "log", **network)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        result = oec("data", "prepare", "fineweb", *sizes, home=home, **network)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "resuming after" in result.stdout
        for bad, parts in {
            ("fineweb", "--config", "sample-1BT"): ("--config", "'sample-1BT'", "sample-10BT"),
            ("fineweb", "--split", "test"): ("--split", "'test'", "train"),
            ("fineweb", "--column", "txt"): ("--column", "'txt'", "text, id, dump"),
            ("owner/name",): ("SOURCE", "'owner/name'", "the Hub refused it"),
        }.items():
            refused(oec("data", "prepare", *bad, *sizes, home=tmp_path / "other", **network), tmp_path, *parts)
    tokens = [np.fromfile(path, "<u2", offset=1024) for path in [*out.glob("val-*"), *sorted(out.glob("train-*"))]]
    assert np.concatenate(tokens).astype(np.uint8).tobytes() == "".join("\0" + text for text in texts).encode()
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["revision"] == hub.COMMIT
    network["HF_ENDPOINT"] = "http://127.0.0.1:9"
    again = oec("data", "prepare", "fineweb", *sizes, home=home, **network)
    assert again.returncode == 0, f"a complete folder needs no Hub: {again.stderr}"


def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    """A local address on which nothing listens stands for a missing network connection."""
    for source in ("fineweb", "owner/name"):
        result = oec(
            "data", "prepare", source, "--tokenizer", "bytes", home=tmp_path / "home",
            HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hub"),
        )  # fmt: skip
        refused(result, tmp_path / "home", "SOURCE", "the Hub does not respond", "give files on this machine")


def test_gpt2_ranks_that_cannot_be_downloaded(source: str, tmp_path: Path) -> None:
    """A proxy address on which nothing listens keeps tiktoken from reaching its vendor's server."""
    result = oec(
        "data", "prepare", source, *SIZES, home=tmp_path / "home",
        TIKTOKEN_CACHE_DIR=str(tmp_path / "cache"), HTTPS_PROXY="http://127.0.0.1:9",
    )  # fmt: skip
    refused(result, tmp_path / "home", "tokenizer", "gpt2", "TIKTOKEN_CACHE_DIR")


def test_progress_line() -> None:
    now = 0.0
    progress = Progress(console := Console(file=io.StringIO()), lambda _line: None, lambda: now)
    progress(1_000_000, 4e6)
    now = 2.0
    progress(2_000_000, 4e6)
    assert progress.line(2_000_000, 4e6) == "2,000,000 tokens | 500,000 tokens/s | 0:02 elapsed | about 0:04 left"
    assert progress.line(2_000_000, None) == "2,000,000 tokens | 500,000 tokens/s | 0:02 elapsed"
    assert console.file.getvalue() == "", "nothing may be shown before there is progress to report"
    now = 11.0
    progress(5_000_000, 4e6)
    assert console.file.getvalue() == "5,000,000 tokens | 363,636 tokens/s | 0:11 elapsed | about 0:00 left\n"

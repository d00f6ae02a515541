"""From a study's data field to tokens: documents, stored files, races, and rejected input."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from search_spaces.data_spec import DataSpec
from search_spaces.errors import InvalidInput
from search_spaces.training_spec import TrainingSpec
from trainers.data import Tokens, prepare, sources, write_shard
from trainers.data.corpus import local, standard_library
from trainers.data.tokenizer import load_encoding

WORDS = [f"the {n} quick brown foxes jump over {n * n} lazy dogs\r\n" for n in range(400)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Returns forty documents of three lines in nested folders, each with an é."""
    folder = tmp_path / "My Texts"
    for number in range(40):
        path = folder / f"part{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(("é" + "".join(WORDS[number : number + 3])).encode())
    return folder


def spec_of(path: object, **changes: object) -> DataSpec:
    return DataSpec.model_validate({"source": "text", "path": str(path), "tokenizer": "bytes"} | changes)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {path: path.stat() for path in sorted(folder.rglob("*"))}
    return {str(path): (stat.st_mtime_ns, stat.st_ino) for path, stat in stats.items()}


def all_ids(tokens: Tokens) -> list[int]:
    """Returns every token of both splits."""
    return np.concatenate([s.read(range(s.windows(1)), 1)[:, 0] for s in (tokens.train, tokens.validation)]).tolist()


# Documents


def test_standard_library_is_about_12_mb_of_python() -> None:
    """The default text has to be large enough to train on wherever it runs."""
    corpus = standard_library()
    names = [document.name for document in corpus.files]
    size = sum(document.path.stat().st_size for document in corpus.files)
    assert 8e6 < size < 20e6
    assert len(names) > 500
    assert {"argparse.py", "asyncio/base_events.py", "json/decoder.py"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in names if "site-packages" in name or "/test" in name or name.startswith("_sysconfig")]
    assert all(name.endswith(".py") for name in names)


def test_builtin_round_trip(tmp_path: Path) -> None:
    """The data of the default study, from sources to tokens and back."""
    lines: list[str] = []
    tokens = prepare(DataSpec(), tmp_path, report=lines.append)
    assert (tokens.vocab_size, tokens.V) == (1024, 1024)
    assert tokens.train.tokens > 2_000_000
    assert 0.02 < tokens.validation.tokens / tokens.train.tokens < 0.2
    assert max(tokens.train.read(range(tokens.train.windows(128)), 128).flat) == 1023
    assert tokens.folder is not None
    ids = tokens.validation.read([0], tokens.validation.tokens - 1)[0]
    encoding = load_encoding(tokens.folder / "bpe.json")
    decoded = encoding.decode(ids.tolist()).split("<|endoftext|>")
    kept = [document.text() for document in standard_library().documents()[1]]
    assert decoded == ["", *kept], "the validation tokens do not spell the validation documents"
    assert len(lines) == 3
    tokens.verify(tmp_path / "memo.json")


def test_folder_file_and_glob(texts: Path, tmp_path: Path) -> None:
    assert len(local(str(texts)).files) == 40
    assert local(str(texts)).name == "my-texts"
    assert [d.name for d in local(str(texts / "part1" / "1.txt")).files] == ["1.txt"]
    assert len(local(str(texts / "**" / "*7.txt")).files) == 4
    assert len(local(str(texts / "part0" / "*")).files) == 14


def test_files_that_are_not_text_are_ignored(texts: Path) -> None:
    before = {d.name for split in local(str(texts)).documents() for d in split}
    (texts / "latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
    (texts / "zero.txt").write_bytes(b"a\0b")
    (texts / "empty.txt").write_bytes(b"")
    (texts / "blank.txt").write_bytes(b" \n\n")
    (texts / ".hidden").write_bytes(b"hidden")
    (texts / ".git").mkdir()
    (texts / ".git" / "config").write_bytes(b"hidden")
    (texts / "dangling.txt").symlink_to(texts / "nowhere")
    assert {d.name for split in local(str(texts)).documents() for d in split} == before


def test_validation_is_a_twentieth_chosen_by_name(texts: Path) -> None:
    train, validation = local(str(texts)).documents()
    assert (len(train), len(validation)) == (38, 2)
    assert not {d.name for d in train} & {d.name for d in validation}
    moved = texts.rename(texts.parent / "elsewhere")
    assert [d.name for d in local(str(moved)).documents()[1]] == [d.name for d in validation]


def test_two_documents_are_split_one_each(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name * 10)
    assert [len(split) for split in local(str(tmp_path)).documents()] == [1, 1]


def test_a_single_document_contributes_its_last_twentieth(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(chr(97 + i % 26) for i in range(1000)))
    tokens = prepare(spec_of(tmp_path / "a.txt"), tmp_path / "home")
    assert (tokens.train.tokens, tokens.validation.tokens) == (951, 51)
    assert tokens.validation.read([0], 3)[0].tolist() == [0, *(97 + i % 26 for i in range(950, 953))]


# Stored files


@pytest.mark.parametrize("pieces", [1 << 20, 10, 1])
def test_tokens_spell_the_documents(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """This holds for any split of a text among threads and shards. Line endings are unchanged."""
    monkeypatch.setattr(sources, "PIECE_CHARACTERS", pieces)
    monkeypatch.setattr(sources, "GROUP_CHARACTERS", 100)
    monkeypatch.setattr(sources, "SHARD_TOKENS", 2000)
    tokens = prepare(spec_of(texts), tmp_path / "home")
    train, validation = local(str(texts)).documents()
    assert len(tokens.train.paths) == 3
    for shards, documents in ((tokens.train, train), (tokens.validation, validation)):
        written = b"".join(np.fromfile(p, "<u2", offset=1024).astype(np.uint8).tobytes() for p in shards.paths)
        assert written == b"".join(b"\0" + document.path.read_bytes() for document in documents)
    tokens.verify(tmp_path / "memo.json")


def test_a_second_call_writes_nothing(texts: Path, tmp_path: Path) -> None:
    home, lines = tmp_path / "home", []
    first = prepare(spec_of(texts), home, report=lines.append)
    assert lines
    before = state(home)
    assert prepare(spec_of(texts), home, report=pytest.fail) == first
    assert state(home) == before
    assert pickle.loads(pickle.dumps(first)) == first


def test_identity_is_the_content(texts: Path, tmp_path: Path) -> None:
    """Equal tokens have equal digests for any home, folder or source; any change gives another digest."""
    first = prepare(spec_of(texts), tmp_path / "home")
    assert len(first.digest) == 16
    copy = shutil.copytree(texts, tmp_path / "copy")
    assert prepare(spec_of(copy), tmp_path / "other").digest == first.digest
    assert first.folder is not None
    given = {"path": first.folder / "train-*.bin", "validation": first.folder / "validation-*.bin", "vocab_size": 256}
    shards = DataSpec.model_validate({"source": "shards", **{k: str(v) for k, v in given.items()}})
    assert prepare(shards, tmp_path / "home").digest == first.digest
    assert prepare(spec_of(texts, tokenizer="bpe", vocab_size=300), tmp_path / "home").digest != first.digest
    with (copy / "part0" / "0.txt").open("a") as file:
        file.write("more")
    assert prepare(spec_of(copy), tmp_path / "other").digest != first.digest


def test_bpe_is_the_same_in_another_process(texts: Path, tmp_path: Path) -> None:
    here = prepare(spec_of(texts, tokenizer="bpe", vocab_size=320), tmp_path / "here")
    code = (
        "import sys, pathlib; from search_spaces.data_spec import DataSpec; from trainers.data import prepare;"
        "print(prepare(DataSpec(source='text', path=sys.argv[1], vocab_size=320), pathlib.Path(sys.argv[2])).digest)"
    )
    command = [sys.executable, "-c", code, str(texts), str(tmp_path / "there")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == here.digest


def test_import_is_light() -> None:
    code = "import sys, trainers.data; print({'torch', 'ray', 'tokenizers', 'tiktoken'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()", f"importing trainers.data imports {output}"


# Races and faults


def test_the_loser_of_a_race_uses_the_tokens_of_the_winner(texts: Path, tmp_path: Path) -> None:
    """Another process starts and finishes while this one is working."""
    home, lines, rivals = tmp_path / "home", [], []

    def report(line: str) -> None:
        lines.append(line)
        if not rivals:
            rivals.append(prepare(spec_of(texts), home))

    mine = prepare(spec_of(texts), home, report=report)
    assert mine == rivals[0]
    assert "another process finished first" in lines[-1]
    assert [path.name for path in (home / "data").iterdir()] == [mine.folder.name], (
        "the losing process left its folder behind"
    )


def _prepare_at(barrier: Barrier, path: str, home: Path) -> str:
    barrier.wait(timeout=60)
    return prepare(spec_of(path), home).digest


def test_race_of_two_processes(texts: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        digests = pool.starmap(_prepare_at, [(barrier, str(texts), tmp_path / "home")] * 2, chunksize=1)
    assert digests[0] == digests[1] == prepare(spec_of(texts), tmp_path / "home", report=pytest.fail).digest
    assert len(list((tmp_path / "home" / "data").iterdir())) == 1


def test_failure_leaves_nothing_behind(texts: Path, tmp_path: Path) -> None:
    def full(line: str) -> None:
        if line.startswith("train"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        prepare(spec_of(texts), tmp_path / "home", report=full)
    assert list((tmp_path / "home" / "data").iterdir()) == []
    prepare(spec_of(texts), tmp_path / "home").verify(tmp_path / "memo.json")


def _die(line: str) -> None:
    if line.startswith("train"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_preparation_is_repeated(texts: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=prepare, args=(spec_of(texts), tmp_path / "home"), kwargs={"report": _die}
    )
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    prepare(spec_of(texts), tmp_path / "home").verify(tmp_path / "memo.json")


@pytest.mark.parametrize("name", ["train-00000.bin", "bpe.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damage_is_detected_when_opening(texts: Path, tmp_path: Path, name: str, damage: str) -> None:
    spec = spec_of(texts, tokenizer="bpe", vocab_size=300)
    folder = prepare(spec, tmp_path / "home").folder
    assert folder is not None
    if damage == "gone":
        (folder / name).unlink()
    else:
        os.truncate(folder / name, (folder / name).stat().st_size - 2)
    with pytest.raises(InvalidInput, match="delete that folder") as caught:
        prepare(spec, tmp_path / "home")
    assert name in caught.value.problem
    assert caught.value.value == str(folder)
    shutil.rmtree(folder)
    prepare(spec, tmp_path / "home").verify(tmp_path / "memo.json")


def test_verify_detects_a_flipped_bit(texts: Path, tmp_path: Path) -> None:
    tokens = prepare(spec_of(texts), tmp_path / "home")
    path = tokens.train.paths[0]
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert prepare(spec_of(texts), tmp_path / "home") == tokens, "opening must only look at sizes"
    with pytest.raises(InvalidInput, match=r"train-00000\.bin.*has changed since"):
        tokens.verify(tmp_path / "memo.json")


# Shards of the user


@pytest.fixture
def given(tmp_path: Path) -> DataSpec:
    for name in ("train-1", "train-2", "val-1"):
        write_shard(tmp_path / f"{name}.bin", np.arange(500) % 300)
    return DataSpec(
        source="shards", path=str(tmp_path / "train-*.bin"), validation=str(tmp_path / "val-*.bin"), vocab_size=300
    )


def test_shards_of_the_user_are_checked_once(given: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prepare(given, tmp_path / "home")
    assert (tokens.train.tokens, tokens.validation.tokens, tokens.vocab_size, tokens.V) == (1000, 500, 300, 320)
    checks: list[int] = []
    monkeypatch.setattr(sources.Shards, "check_vocabulary", lambda _self, size: checks.append(size))
    assert prepare(given, tmp_path / "home") == tokens
    assert checks == []
    prepare(given.model_copy(update={"vocab_size": 301}), tmp_path / "home")
    assert checks == [301, 301]


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"vocab_size": 299}, "data.vocab_size", "token id 299 at position 299 of"),
        ({"path": "*.none"}, "data.path", "matches no file"),
        ({"validation": "*.none"}, "data.validation", "matches no file"),
        ({"validation": "*.bin"}, "data.validation", "includes training shards"),
    ],
)
def test_bad_shards(given: DataSpec, tmp_path: Path, change: dict[str, object], field: str, problem: str) -> None:
    change = {key: str(tmp_path / value) if isinstance(value, str) else value for key, value in change.items()}
    for _ in range(2):
        with pytest.raises(InvalidInput) as caught:
            prepare(given.model_copy(update=change), tmp_path / "home")
        assert caught.value.field == field
        assert problem in caught.value.problem


# Rejection


@pytest.mark.parametrize("path", ["gone", "gone/*.txt", "empty", "images"])
def test_without_any_text_the_field_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    with pytest.raises(InvalidInput) as caught:
        prepare(spec_of(tmp_path / path), tmp_path / "home")
    assert caught.value.field == "data.path"
    assert not (tmp_path / "home").exists(), "rejected input left files in the home"


def test_vocabulary_larger_than_the_text_allows(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="too large") as caught:
        prepare(spec_of(texts, tokenizer="bpe", vocab_size=5000), tmp_path / "home")
    assert caught.value.field == "data.vocab_size"
    assert list((tmp_path / "home" / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("T", "eval_sequences", "numbers"),
    [
        (
            500,
            1,
            ("1000 training tokens into 0 sequences, but at least 1 are needed; use at most 499, or give more text",),
        ),
        (
            400,
            2,
            ("500 validation tokens into 1 sequences, but at least 2 are needed; use at most 249", "eval_sequences"),
        ),
        (
            10,
            500,
            ("into 49 sequences, but at least 500 are needed; give more text, or lower training.eval_sequences",),
        ),
    ],
)
def test_sequence_longer_than_the_data(
    given: DataSpec, tmp_path: Path, T: int, eval_sequences: int, numbers: tuple[str, ...]
) -> None:
    tokens = prepare(given, tmp_path / "home")
    tokens.check_length(TrainingSpec(sequence_length=99, eval_sequences=5))
    with pytest.raises(InvalidInput) as caught:
        tokens.check_length(TrainingSpec(sequence_length=T, eval_sequences=eval_sequences))
    assert (caught.value.field, caught.value.value) == ("training.sequence_length", T)
    for number in numbers:
        assert number in str(caught.value)


def test_a_final_validation_of_more_sequences_than_there_are(given: DataSpec, tmp_path: Path) -> None:
    tokens = prepare(given, tmp_path / "home")
    spec = TrainingSpec(sequence_length=10, eval_sequences=5, final_eval_sequences=49)
    tokens.check_length(spec)
    with pytest.raises(InvalidInput) as caught:
        tokens.check_length(spec.model_copy(update={"final_eval_sequences": 50}))
    assert str(caught.value) == (
        "training.final_eval_sequences: 50 is more than the 49 sequences of 10 in the 500 validation tokens; "
        "use at most 49, or give more text for validation"
    )


def test_manifest_is_frozen(texts: Path, tmp_path: Path) -> None:
    folder = prepare(spec_of(texts), tmp_path / "home").folder
    assert folder is not None
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest) == [
        "recipe",
        "corpus",
        "tokenizer",
        "vocab_size",
        "end_of_text",
        "documents",
        "tokens",
        "digest",
        "files",
        "left_out",
    ]
    assert {*manifest["files"]} == {"train-00000.bin", "validation-00000.bin"}

"""Token files from any source: content for all sizes and thread counts, resumption, repair, and rejected input."""

from __future__ import annotations

import errno
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces.data_spec import DataSpec
from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from search_spaces.training_spec import TrainingSpec
from tests import fineweb
from trainers.data import Recipe, prepare, tokenize, write_shard
from trainers.data import preparation as module
from trainers.data.documents import Batch, Documents, StreamPosition
from trainers.data.preparation import Manifest, Observer, TokenPosition
from trainers.data.shards import HEADER_BYTES
from trainers.data.tokenizer import END_OF_TEXT, UNTRAINED, from_encoding, train_bpe


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return fineweb.texts(300)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> str:
    return fineweb.write(tmp_path_factory.mktemp("fineweb"), documents)


def recipe_of(source: str, **changes: object) -> Recipe:
    sizes = {"shard_tokens": 200_000, "val_tokens": 50_000}
    return Recipe.model_validate({"source": source, "tokenizer": "bytes"} | sizes | changes)


def ids_of(folder: Path) -> np.ndarray:
    """Returns the tokens of validation and training in order."""
    paths = [*sorted(folder.glob("val-*.bin")), *sorted(folder.glob("train-*.bin"))]
    return np.concatenate([np.fromfile(path, "<u2", offset=HEADER_BYTES) for path in paths])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Content


def test_gpt2_tokens_of_fineweb_columns(
    gpt2_cache: Path, source: str, documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default configuration with the real vocabulary, from parquet to a study's tokens and back to text."""
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_cache))
    manifest = tokenize(recipe_of(source, tokenizer="gpt2"), tmp_path / "data/fineweb", workers=2)
    encoding = tiktoken.get_encoding("r50k_base")
    assert encoding.encode_ordinary("hello world") == [31373, 995], "this is not GPT-2's vocabulary"
    expected = [token for text in documents for token in (50256, *encoding.encode_ordinary(text))]
    assert ids_of(tmp_path / "data/fineweb").tolist() == expected
    assert encoding.decode(expected) == "".join(END_OF_TEXT + text for text in documents)
    assert (manifest.complete, manifest.vocab_size) == (True, 50257)
    assert (manifest.tokens, manifest.documents) == (len(expected), len(documents))
    assert [file.tokens for file in manifest.files][:2] == [50_000, 200_000]

    spec = Study.load("paper").data
    monkeypatch.chdir(tmp_path)
    tokens = prepare(spec, tmp_path / "home")
    assert tokens.train.tokens + tokens.validation.tokens == len(expected), (
        "the study paper does not find the prepared tokens"
    )
    assert (tokens.validation.tokens, tokens.V) == (50_000, 50_304)


TEXTS = st.lists(st.sampled_from(["a", "é", " \n\n", "the ", "<|endoftext|>", "<|end", "oftext|>"]), max_size=5)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(TEXTS, max_size=6), name=st.sampled_from(["bytes", "bpe"]))
def test_many_documents_are_encoded_like_each_one_alone(parts: list[list[str]], name: str) -> None:
    """This includes documents that contain the end-of-text token, or half of it."""
    tokenizer = TOKENIZERS[name]
    texts = ["".join(part) for part in parts]
    expected = [id for text in texts for id in (tokenizer.end_of_text, *tokenizer.encode(text).tolist())]
    encoded = tokenizer.encode_documents(texts)
    assert encoded.tolist() == expected
    assert encoded.dtype == np.uint16
    assert expected.count(tokenizer.end_of_text) == len(texts)


TOKENIZERS = {
    "bytes": UNTRAINED["bytes"](),
    "bpe": from_encoding(train_bpe(["the end of text is <|endoftext|>, the end"] * 3, 270)),
}


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), max_size=4), max_size=8),
    shard=st.integers(1, 60),
    validation=st.integers(1, 60),
    limit=st.none() | st.integers(61, 200),
    chunk=st.integers(1, 80),
    data=st.data(),
)
def test_stream_of_tokens_is_split_and_resumed_anywhere(
    lengths: list[list[int]], shard: int, validation: int, limit: int | None, chunk: int, data: st.DataObject
) -> None:
    """The tokens are those of the documents for any grouping and file size, and any file's end position is where the
    next file starts for any number of threads and any chunks."""
    recipe = Recipe(source="any", shard_tokens=shard, val_tokens=validation, tokens=limit)
    batches = []
    rows = 0
    for batch in lengths:
        texts = [chr(97 + (rows + i) % 26) * length for i, length in enumerate(batch)]
        batches.append(Batch(StreamPosition(rows=rows), texts))
        rows += len(batch)
    whole = UNTRAINED["bytes"]().encode_documents([text for batch in batches for text in batch.texts])[:limit]

    def files(
        start: TokenPosition, number: int, characters: int, workers: int
    ) -> list[tuple[list[int], TokenPosition]]:
        left = [batch for batch in batches if batch.place.rows >= start.place.rows]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CHUNK_CHARACTERS", characters)
            chunks = module._encode(left, start.skip, UNTRAINED["bytes"], workers)
            return [(ids.tolist(), end) for ids, end in module._split_into_files(chunks, recipe.size, number)]

    made = files(TokenPosition(), 0, chunk, 2)
    assert [token for ids, _ in made for token in ids] == whole.tolist()
    assert [len(ids) for ids, _ in made[:-1]] == [recipe.size(number) for number in range(len(made))][:-1]
    if made:
        number = data.draw(st.integers(0, len(made) - 1))
        again = files(made[number][1], number + 1, data.draw(st.integers(1, 80)), 1)
        assert [ids for ids, _ in again] == [ids for ids, _ in made[number + 1 :]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.lists(st.integers(0, 65_535), min_size=1, max_size=200), size=st.integers(1, 250))
def test_shards_round_trip(tmp_path: Path, tokens: list[int], size: int) -> None:
    for old in tmp_path.glob("*.bin"):
        old.unlink()
    for number, start in enumerate(range(0, len(tokens), size)):
        write_shard(tmp_path / f"train-{number:05}.bin", tokens[start : start + size])
    assert ids_of(tmp_path).tolist() == tokens


@pytest.mark.parametrize("shard_tokens", [50_000, 333_333, 10**9])
def test_tokens_do_not_depend_on_sizes_and_threads(
    source: str, documents: list[str], tmp_path: Path, shard_tokens: int
) -> None:
    text = "".join("\0" + document for document in documents).encode()
    for workers in (1, 3):
        recipe = recipe_of(source, shard_tokens=shard_tokens)
        manifest = tokenize(recipe, tmp_path / str(workers), workers=workers)
        assert ids_of(tmp_path / str(workers)).astype(np.uint8).tobytes() == text
        assert {file.tokens for file in manifest.files[1:-1]} <= {shard_tokens}
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_limit(source: str, tmp_path: Path) -> None:
    manifest = tokenize(recipe_of(source, tokens=333_333), tmp_path / "a", workers=1)
    assert [file.tokens for file in manifest.files] == [50_000, 200_000, 83_333]
    whole = tokenize(recipe_of(source), tmp_path / "b", workers=1)
    assert whole.files[:2] == manifest.files[:2]
    assert ids_of(tmp_path / "b")[:333_333].tolist() == ids_of(tmp_path / "a").tolist()


def lines(folder: Path, documents: list[str]) -> str:
    with gzip.open(folder / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"n": 1, "body": text}) + "\n" for text in documents)
    return str(folder / "a.jsonl.gz")


def folder_of_texts(folder: Path, documents: list[str]) -> str:
    for number, text in enumerate(documents):
        path = folder / "texts" / f"part{number // 10:03}" / f"{number:05}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return str(folder / "texts")


@pytest.mark.parametrize(("write", "column"), [(lines, "body"), (folder_of_texts, "text")])
def test_other_files(
    write: Callable[[Path, list[str]], str], column: str, documents: list[str], tmp_path: Path
) -> None:
    documents = [text.replace("\r", "") for text in documents[:60]]
    recipe = recipe_of(write(tmp_path, ["", *documents]), column=column)
    assert tokenize(recipe, tmp_path / "out", workers=2).documents == 60
    assert ids_of(tmp_path / "out").astype(np.uint8).tobytes() == "".join("\0" + d for d in documents).encode()


def test_expected_tokens(source: str, documents: list[str], tmp_path: Path) -> None:
    """The estimate of the remaining time uses the rows of parquet files, a limit, or the name of a sample."""
    told: list[tuple[int, float | None]] = []
    manifest = tokenize(
        recipe_of(source), tmp_path / "a", workers=1, observer=Observer(advance=lambda *a: told.append(a))
    )
    assert told[-1][0] == manifest.tokens
    assert told[-1][1] == pytest.approx(manifest.tokens, rel=0.3)
    tokenize(
        recipe_of(source, tokens=60_000),
        tmp_path / "b",
        workers=1,
        observer=Observer(advance=lambda *a: told.append(a)),
    )
    assert told[-1][1] == 60_000
    fineweb_10 = Documents("fineweb", config=None, split="train", column="text")
    assert (fineweb_10.source, fineweb_10.config, fineweb_10.tokens()) == ("HuggingFaceFW/fineweb", "sample-10BT", 1e10)
    assert fineweb_10.name == "fineweb"


# Resumption


def test_a_second_call_verifies_and_writes_nothing(source: str, tmp_path: Path) -> None:
    first = tokenize(recipe_of(source), tmp_path / "out", workers=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    told: list[str] = []
    assert tokenize(recipe_of(source), tmp_path / "out", workers=1, observer=Observer(told.append)) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert told == [f"verified {len(first.files)} files by their SHA-256"]


@pytest.mark.parametrize("damage", ["flipped", "gone"])
@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_file_is_written_again(source: str, tmp_path: Path, damage: str, number: int) -> None:
    out = tmp_path / "out"
    manifest = tokenize(recipe_of(source), out, workers=2)
    whole = contents(out)
    path = out / manifest.files[number].name
    if damage == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    told: list[str] = []
    assert tokenize(recipe_of(source), out, workers=2, observer=Observer(told.append)) == manifest
    assert told[0] == f"{path.name} is missing or damaged: writing it again, and all files after it"
    assert contents(out) == whole


def test_leftovers_of_a_kill_are_removed(source: str, tmp_path: Path) -> None:
    """The kill happens between a file and the manifest that lists it, and in the middle of a file."""
    out = tmp_path / "out"
    manifest = tokenize(recipe_of(source), out, workers=2)
    whole = contents(out)
    early = manifest.model_copy(update={"complete": False, "files": manifest.files[:2]})
    (out / "manifest.json").write_text(early.model_dump_json(indent=1) + "\n")
    (out / f".train-00002.bin-{'0' * 32}").write_bytes(b"half")
    assert tokenize(recipe_of(source), out, workers=2) == manifest
    assert contents(out) == whole


# Rejection


def refused(recipe: Recipe, out: Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        tokenize(recipe, out, workers=1)
    return caught.value


def test_a_source_that_changes_in_between_is_rejected(source: str, documents: list[str], tmp_path: Path) -> None:
    changing = fineweb.write(tmp_path / "in", documents)
    out = tmp_path / "out"
    manifest = tokenize(recipe_of(changing), out, workers=1)
    early = manifest.model_copy(update={"complete": False, "files": manifest.files[:2]})
    (out / "manifest.json").write_text(early.model_dump_json())
    before = contents(out)
    fineweb.write(tmp_path / "in", [*documents, "more"])
    error = refused(recipe_of(changing), out)
    assert (error.field, error.problem) == ("SOURCE", "has changed since tokenization started")
    assert contents(out) == before


@pytest.mark.parametrize(
    "changes", [{"shard_tokens": 100_000}, {"val_tokens": 60_000}, {"tokens": 300_000}, {"tokenizer": "gpt2"}]
)
def test_folder_with_other_settings(
    source: str, tmp_path: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(UNTRAINED, "gpt2", UNTRAINED["bytes"])  # the settings differ, so no token is written
    out = tmp_path / "out"
    tokenize(recipe_of(source), out, workers=1)
    before = contents(out)
    error = refused(recipe_of(source, **changes), out)
    assert (error.field, error.value) == ("--out", str(out))
    assert next(iter(changes)) in error.problem
    assert contents(out) == before


def test_folder_with_files_of_others(source: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "train-00001.bin", [1])
    assert "has train-00001.bin" in refused(recipe_of(source), tmp_path).problem
    (tmp_path / "manifest.json").write_text("{}")
    assert "cannot be read" in refused(recipe_of(source), tmp_path).problem


def test_source_too_small_leaves_nothing(tmp_path: Path) -> None:
    source = fineweb.write(tmp_path / "in", ["a" * 99, "b" * 99], files=1)
    error = refused(recipe_of(source), tmp_path / "out")
    assert (error.field, error.value) == ("--val-tokens", 50_000)
    assert "200 tokens" in error.problem
    assert not (tmp_path / "out").exists()
    assert tokenize(recipe_of(source, val_tokens=10), tmp_path / "out", workers=1).tokens == 200


def test_two_concurrent_preparations(source: str, tmp_path: Path) -> None:
    with module._locked(tmp_path / "out"):
        error = refused(recipe_of(source), tmp_path / "out")
    assert (error.field, error.problem) == ("--out", "is being written by another process")


def test_a_full_disk_keeps_finished_files(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def full(path: Path, ids: np.ndarray) -> None:
        if path.name == "train-00001.bin":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_shard(path, ids)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", full)
        error = refused(recipe_of(source), out)
    assert (error.field, error.problem) == ("--out", "cannot be written to (No space left on device)")
    kept = Manifest.model_validate_json((out / "manifest.json").read_bytes())
    assert [file.name for file in kept.files] == ["val-00000.bin", "train-00000.bin"]
    tokenize(recipe_of(source), out, workers=1)
    tokenize(recipe_of(source), tmp_path / "whole", workers=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_shards_are_what_a_study_reads(source: str, tmp_path: Path) -> None:
    manifest = tokenize(recipe_of(source), tmp_path / "out", workers=2)
    paths = {"path": str(tmp_path / "out/train-*.bin"), "validation": str(tmp_path / "out/val-*.bin")}
    tokens = prepare(DataSpec(source="shards", vocab_size=manifest.vocab_size, **paths), tmp_path / "home")
    assert tokens.train.tokens + tokens.validation.tokens == manifest.tokens
    tokens.check_length(TrainingSpec(sequence_length=128, eval_sequences=64))

"""From a study's data field to opened token shards. A text is tokenized once and stored in the home.

home/data/<corpus>-<tokenizer>-<digest>/   train-00000.bin ..., validation-00000.bin ..., manifest.json, bpe.json
home/data/checked/<digest>                 marks shards of the user whose tokens were all checked against the vocabulary
home/data/verified.json                    large files whose checksum was verified
"""

from __future__ import annotations

import os
import shutil
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from search_spaces.data_spec import DataSpec
from search_spaces.errors import InvalidInput
from search_spaces.frozen import Frozen, digest
from search_spaces.training_spec import TrainingSpec
from trainers.data.corpus import Corpus, Document, local, standard_library
from trainers.data.shards import Shards, write_shard
from trainers.data.tokenizer import (
    UNTRAINED,
    Tokenizer,
    from_encoding,
    load_encoding,
    save_encoding,
    train_bpe,
)
from trainers.data.verification import MANIFEST, FileName, verify
from trainers.storage.bucket import Mirror
from trainers.storage.files import sha256

T = TypeVar("T")
RECIPE = 1
"""Incremented when the same text would be tokenized differently, words of 256 and more characters apart."""
SAMPLE_CHARACTERS = 4_000_000
"""Length of the text sample that byte pairs are trained on."""
PIECE_CHARACTERS = 1 << 20
GROUP_CHARACTERS = 16 << 20
"""Text that is held in memory at a time."""
SHARD_TOKENS = 100_000_000
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Tokens:
    """The tokens that a study is trained and evaluated on. It pickles as its paths."""

    train: Shards
    validation: Shards
    vocab_size: int
    """Number of token ids in use."""
    V: int
    """Vocabulary of the model: ``vocab_size`` and padding."""
    digest: str
    """16 hexadecimal digits that identify the tokens of both splits and the vocabulary, regardless of their origin."""
    folder: Path | None = None
    """The folder that ``prepare`` wrote; None for shards of the user."""

    def check_length(self, spec: TrainingSpec) -> None:
        """Checks that there are enough sequences.

        Raises:
            InvalidInput: the training tokens have no window of T + 1 tokens, or validation has fewer windows than
                ``eval_sequences`` or ``final_eval_sequences``.
        """
        T, asked = spec.sequence_length, spec.final_eval_sequences
        needs = (("training", self.train, 1), ("validation", self.validation, spec.eval_sequences))
        for name, shards, needed in needs:
            if (have := shards.windows(T)) < needed:
                fit = bisect_left(range(1, T), True, key=lambda t: shards.windows(t) < needed)
                remedies = [f"use at most {fit}"] * (fit > 0) + ["give more text"]
                remedies += ["lower training.eval_sequences"] * (needed > 1)
                raise InvalidInput(
                    "training.sequence_length",
                    T,
                    f"divides the {shards.tokens} {name} tokens into {have} sequences, but at least {needed} are "
                    "needed",
                    ", or ".join(remedies),
                )
        if asked is not None and (have := self.validation.windows(T)) < asked:
            raise InvalidInput(
                "training.final_eval_sequences",
                asked,
                f"is more than the {have} sequences of {T} in the {self.validation.tokens} validation tokens",
                f"use at most {have}, or give more text for validation",
            )

    def verify(self, memo: Path) -> None:
        """Checks every file against its checksum in the manifest in its folder, if there is one.

        Args:
            memo: a file that remembers large files by size and modification time, so that they are read only once.

        Raises:
            InvalidInput: a file has changed since it was written.
        """
        verify((*self.train.paths, *self.validation.paths), memo)


@dataclass(frozen=True)
class TokenFiles:
    """Describes tokens for another process, which may run on a machine that has to download them first."""

    train: tuple[tuple[Path, ...], str]
    """Paths and origin of the ``Shards``."""
    validation: tuple[tuple[Path, ...], str]
    vocab_size: int
    V: int
    digest: str
    folder: Path | None
    mirror: Mirror | None

    @classmethod
    def of(cls, tokens: Tokens, mirror: Mirror | None = None) -> TokenFiles:
        """
        Args:
            mirror: of the tokens' folder, if not every machine can read it.
        """
        train, validation = ((shards.paths, shards.origin) for shards in (tokens.train, tokens.validation))
        return cls(train, validation, tokens.vocab_size, tokens.V, tokens.digest, tokens.folder, mirror)

    def open(self) -> Tokens:
        """
        Raises:
            InvalidInput: a file is missing or truncated.
        """
        if self.mirror:
            self.mirror.fetch(MANIFEST)
        return Tokens(Shards(*self.train), Shards(*self.validation), self.vocab_size, self.V, self.digest, self.folder)


class FileEntry(Frozen):
    """A file in a manifest."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class TextManifest(Frozen):
    """``manifest.json`` of a text that was tokenized into a home."""

    recipe: int
    corpus: str
    tokenizer: str
    vocab_size: int = Field(ge=1, le=65_536)
    end_of_text: int | None
    documents: dict[str, int]
    tokens: dict[str, int]
    digest: str
    files: dict[FileName, FileEntry]
    left_out: tuple[str, ...] = ()
    """What was not used of the text, and why."""


def prepare(
    spec: DataSpec,
    home: Path,
    *,
    fetch: Callable[[Path], bool] = lambda _folder: False,
    report: Callable[[str], None] = lambda _line: None,
) -> Tokens:
    """Opens the tokens of a study. Tokenizes its text first, if the tokens are not in ``home`` yet.

    Several processes may do this at the same time: each writes to its own folder, and the first to finish wins.

    Args:
        fetch: called with the folder before it is built; downloads it if possible and returns whether it did.
        report: called with a line about each operation that may take long.

    Raises:
        InvalidInput: the text, the shards, the vocabulary or the tokenizer cannot be used.
    """
    if spec.source == "shards":
        return _open_shards(spec, home / "data" / "checked")
    corpus = CORPORA[spec.source](spec)
    vocabulary = f"{spec.tokenizer}-{spec.vocab_size}" if spec.tokenizer == "bpe" else spec.tokenizer
    key = f"{corpus.name}-{vocabulary}-{digest([RECIPE, vocabulary, corpus.fingerprint])[:10]}"
    folder = home.absolute() / "data" / key
    if not (folder.is_dir() or fetch(folder)):
        _build(folder, corpus, spec, report)
    for line in (manifest := _manifest(folder)).left_out:
        report(line)
    return _open_folder(folder, manifest, spec)


CORPORA: Mapping[str, Callable[[DataSpec], Corpus]] = {
    "builtin": lambda _spec: standard_library(),
    "text": lambda spec: local(str(spec.path)),
}


def _make_tokenizer(spec: DataSpec, sample: Iterable[str], folder: Path) -> Tokenizer:
    """Trains byte pairs on a sample of the training text, and stores them in ``folder``, if the study asks for that."""
    if spec.tokenizer != "bpe":
        return UNTRAINED[spec.tokenizer]()
    save_encoding(train_bpe(sample, spec.vocab_size), folder / "bpe.json")
    return from_encoding(load_encoding(folder / "bpe.json"))


def _build(folder: Path, corpus: Corpus, spec: DataSpec, report: Callable[[str], None]) -> None:
    """Tokenizes into a temporary folder and renames it to ``folder``."""
    train, validation = corpus.documents()
    report(f"tokenizing {len(train) + len(validation)} documents of {corpus.name} ({spec.tokenizer})")
    building = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    building.mkdir(parents=True)
    try:
        tokenizer = _make_tokenizer(spec, _sample(train), building)
        for split, documents in zip(SPLITS, (train, validation), strict=True):
            count = _write(building, split, _encode(tokenizer, documents))
            report(f"{split}: {len(documents)} documents, {count:,} tokens")
        shards = [Shards(tuple(sorted(building.glob(f"{split}-*.bin")))) for split in SPLITS]
        files = {path.name: FileEntry(bytes=path.stat().st_size, sha256=sha256(path)) for path in building.iterdir()}
        manifest = TextManifest(
            recipe=RECIPE,
            corpus=corpus.name,
            tokenizer=spec.tokenizer,
            vocab_size=tokenizer.vocab_size,
            end_of_text=tokenizer.end_of_text,
            documents={"train": len(train), "validation": len(validation)},
            tokens={split: shard.tokens for split, shard in zip(SPLITS, shards, strict=True)},
            digest=_identity(shards[0], shards[1], tokenizer.vocab_size),
            files=dict(sorted(files.items())),
            left_out=corpus.left_out if spec.source == "text" else (),
        )
        (building / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            report("another process finished first: using its tokens")
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _open_folder(folder: Path, manifest: TextManifest, spec: DataSpec) -> Tokens:
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise _damaged(folder, f"has no {name} with its original size")
    train, validation = (
        Shards(tuple(folder / name for name in manifest.files if name.startswith(f"{split}-"))) for split in SPLITS
    )
    return Tokens(train, validation, manifest.vocab_size, spec.V, manifest.digest, folder)


def _open_shards(spec: DataSpec, checked: Path) -> Tokens:
    """Opens shards of the user. Every token is checked once; ``checked`` remembers their digest."""
    train = Shards.match(str(spec.path), "data.path")
    validation = Shards.match(str(spec.validation), "data.validation")
    if both := sorted(set(train.paths) & set(validation.paths)):
        raise InvalidInput(
            "data.validation", spec.validation, f"includes training shards, such as {both[0]}", "use separate shards"
        )
    identity = _identity(train, validation, spec.vocab_size)
    if not (checked / identity).exists():
        train.check_vocabulary(spec.vocab_size)
        validation.check_vocabulary(spec.vocab_size)
        checked.mkdir(parents=True, exist_ok=True)
        (checked / identity).touch()
    return Tokens(train, validation, spec.vocab_size, spec.V, identity)


def _identity(train: Shards, validation: Shards, vocab_size: int) -> str:
    return digest([train.digest, validation.digest, vocab_size])[:16]


def _sample(documents: Iterable[Document]) -> Iterator[str]:
    """Yields documents in the order of a hash of their names, up to ``SAMPLE_CHARACTERS``."""
    left = SAMPLE_CHARACTERS
    for document in sorted(documents, key=Document.hash):
        if left <= 0:
            return
        text = (document.text() or "")[:left]
        left -= len(text)
        yield text


def _encode(tokenizer: Tokenizer, documents: Iterable[Document]) -> Iterator[NDArray[np.uint16]]:
    """Yields the ids of the documents, each preceded by the end-of-text token, as in the published shards."""
    start = np.array([tokenizer.end_of_text], dtype=np.uint16)

    def encode(piece: tuple[str, bool]) -> NDArray[np.uint16]:
        text, first = piece
        ids = tokenizer.encode(text)
        return np.concatenate([start, ids]) if first else ids

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for pieces in grouped(_pieces(documents), lambda piece: len(piece[0]), GROUP_CHARACTERS):
            yield from pool.map(encode, pieces)


def _pieces(documents: Iterable[Document]) -> Iterator[tuple[str, bool]]:
    """Yields pieces of text, split at line ends if possible, and whether each is the first of its document."""
    for document in documents:
        text, start = document.text() or "", 0
        while start < len(text):
            limit = start + PIECE_CHARACTERS
            end = len(text) if limit >= len(text) else text.rfind("\n", start, limit) + 1 or limit
            yield text[start:end], start == 0
            start = end


def _write(folder: Path, split: str, arrays: Iterable[NDArray[np.uint16]]) -> int:
    """Writes the shards of a split. Returns its number of tokens."""
    count = 0
    for number, group in enumerate(grouped(arrays, len, SHARD_TOKENS)):
        ids = np.concatenate(group)
        write_shard(folder / f"{split}-{number:05}.bin", ids)
        count += len(ids)
    return count


def grouped(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yields the items in lists; a list ends with the item at which its total size reaches ``limit``."""
    group: list[T] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group


def _manifest(folder: Path) -> TextManifest:
    try:
        return TextManifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a ValidationError is one
        raise _damaged(folder, "has no readable manifest.json") from error


def _damaged(folder: Path, problem: str) -> InvalidInput:
    return InvalidInput("data", str(folder), problem, "delete that folder; it will be written again")

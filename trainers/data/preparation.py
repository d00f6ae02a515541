"""From a stream of documents to a folder of token files that studies share. It can be interrupted and resumed.

    FOLDER/val-00000.bin              the first tokens of the source, as in the published sets
    FOLDER/train-00000.bin ...        the rest, ``shard_tokens`` in each file, which may split a document
    FOLDER/manifest.json              settings, revision, and the SHA-256 and end position of each finished file

The manifest is written after each file. A file that it does not list is written again, with the same bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import ValidationError

from search_spaces.errors import InvalidInput
from search_spaces.frozen import Frozen
from trainers.data.documents import Batch, Documents, StreamPosition
from trainers.data.shards import write_shard
from trainers.data.sources import grouped
from trainers.data.tokenizer import UNTRAINED, Tokenizer
from trainers.data.verification import MANIFEST, FileName
from trainers.storage.files import remove_unfinished, sha256, write_atomically

CHUNK_CHARACTERS = 1 << 17
"""Text that a thread encodes at a time: small enough for its cache, and large enough to be worth waking it."""
CHUNKS_AHEAD = 16
"""Chunks per worker that are read ahead, which keeps the threads busy while a file is written."""


class Recipe(Frozen):
    """The settings that, together with the source's content, determine every byte of the token files."""

    source: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    tokenizer: str = "gpt2"
    shard_tokens: int = 100_000_000
    val_tokens: int | None = None
    """None: as many as ``shard_tokens``."""
    tokens: int | None = None
    """Total of both splits; None: the whole source."""

    @property
    def validation(self) -> int:
        return self.val_tokens or self.shard_tokens

    @property
    def documents(self) -> Documents:
        return Documents(self.source, config=self.config, split=self.split, column=self.column)

    def check(self) -> None:
        """
        Raises:
            InvalidInput: a field is not valid; the error names its command-line option.
        """
        if self.tokenizer not in UNTRAINED:
            raise InvalidInput(
                "--tokenizer", self.tokenizer, "is not a tokenizer", f"choose from {', '.join(UNTRAINED)}"
            )
        for name in ("shard_tokens", "val_tokens", "tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidInput(f"--{name.replace('_', '-')}", value, "must be positive", "give 1 or more")
        if self.tokens is not None and self.tokens <= self.validation:
            problem = f"leaves no training tokens after {self.validation} validation tokens"
            raise InvalidInput("--tokens", self.tokens, problem, "raise it, or lower --val-tokens")

    def size(self, number: int) -> int:
        """Returns the number of tokens of file ``number``, or 0 after the last file."""
        before = self.validation + (number - 1) * self.shard_tokens if number else 0
        size = self.shard_tokens if number else self.validation
        return size if self.tokens is None else max(0, min(size, self.tokens - before))


class TokenPosition(Frozen):
    """A position between two tokens: ``skip`` tokens after a position between two documents."""

    place: StreamPosition = StreamPosition()
    skip: int = 0


class FinishedFile(Frozen):
    """A complete token file."""

    name: FileName
    tokens: int
    documents: int
    """Documents that start in it."""
    sha256: str
    end: TokenPosition


class Manifest(Frozen):
    recipe: Recipe
    revision: str
    vocab_size: int
    complete: bool = False
    files: tuple[FinishedFile, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(file.tokens for file in self.files)

    @property
    def documents(self) -> int:
        return sum(file.documents for file in self.files)


Chunk = tuple[TokenPosition, NDArray[np.uint16]]


@dataclass(frozen=True)
class Observer:
    """Callbacks for the progress of a preparation."""

    report: Callable[[str], None] = lambda _line: None
    """Called with a line about each finished part."""
    advance: Callable[[int, float | None], None] = lambda _done, _expected: None
    """Called with the number of tokens so far, and the expected total or None."""


def tokenize(recipe: Recipe, folder: Path, *, workers: int, observer: Observer = Observer()) -> Manifest:
    """Writes the token files of ``recipe`` that are missing in ``folder``.

    Existing files are verified by their checksum. A damaged file is written again, and so are the files after it.

    Args:
        workers: number of encoding threads. The bytes do not depend on it.

    Raises:
        InvalidInput: a setting, the source or the folder cannot be used, or the folder holds something else.
    """
    recipe.check()
    documents = recipe.documents
    tokenizer = UNTRAINED[recipe.tokenizer]()
    with _locked(folder):
        manifest = _load_manifest(folder, recipe)
        if manifest and (manifest := _verify_files(folder, manifest, observer.report)).complete:
            return manifest
        revision = documents.revision(manifest.revision if manifest else None)
        if manifest and revision != manifest.revision:
            problem, remedy = "has changed since tokenization started", f"choose another --out, or delete {folder}"
            raise InvalidInput("SOURCE", recipe.source, problem, remedy)
        manifest = manifest or Manifest(recipe=recipe, revision=revision, vocab_size=tokenizer.vocab_size)
        if manifest.files:
            observer.report(f"resuming after {manifest.tokens:,} tokens in {len(manifest.files)} files")
        return _write_files(folder, manifest, documents, tokenizer, workers, observer)


def _write_files(
    folder: Path, manifest: Manifest, documents: Documents, tokenizer: Tokenizer, workers: int, observer: Observer
) -> Manifest:
    """Writes the files that ``manifest`` lacks. Returns the complete manifest."""
    recipe = manifest.recipe
    start = manifest.files[-1].end if manifest.files else TokenPosition()
    estimate = _TokenEstimate(recipe.tokens, documents)

    left_out = 0

    def batches() -> Iterator[Batch]:
        nonlocal left_out
        for batch in documents.batches(manifest.revision, start.place):
            left_out += batch.left_out
            yield batch

    def chunks_with_progress() -> Iterator[Chunk]:
        done = manifest.tokens
        for position, ids in _encode(batches(), start.skip, UNTRAINED[recipe.tokenizer], workers):
            total = estimate(done - position.skip, position.place.rows)
            done += len(ids)
            observer.advance(done, total)
            yield position, ids

    for ids, end in _split_into_files(chunks_with_progress(), recipe.size, len(manifest.files)):
        number = len(manifest.files)
        if not number and len(ids) < recipe.validation:
            raise _too_few(recipe, len(ids))
        name = f"train-{number - 1:05}.bin" if number else "val-00000.bin"
        with _write_errors(folder):
            if not number:
                _save(folder, manifest)  # from now on the folder belongs to this recipe
            write_shard(folder / name, ids)
            starts = int(np.count_nonzero(ids == tokenizer.end_of_text))
            file = FinishedFile(name=name, tokens=len(ids), documents=starts, sha256=sha256(folder / name), end=end)
            manifest = manifest.model_copy(update={"files": (*manifest.files, file)})
            _save(folder, manifest)
        observer.report(f"{name}: {len(ids):,} tokens")
    if left_out:
        observer.report(f"{left_out:,} rows without text were left out")
    if len(manifest.files) < 2:
        raise _too_few(recipe, manifest.tokens)
    manifest = manifest.model_copy(update={"complete": True})
    with _write_errors(folder):
        _save(folder, manifest)
    return manifest


def _encode(
    batches: Iterable[Batch], skip: int, make_tokenizer: Callable[[], Tokenizer], workers: int
) -> Iterator[Chunk]:
    """Yields the ids of the batches in order, without the first ``skip``, in chunks with their start positions."""
    pending: deque[tuple[StreamPosition, Future[NDArray[np.uint16]]]] = deque()
    local = threading.local()

    def make_local_tokenizer() -> None:
        # The first thread that uses an encoding owns the scratch space of its regular expression. All other threads
        # share a pool behind a lock, which costs them a third of their speed.
        local.tokenizer = make_tokenizer()

    def encode(texts: list[str]) -> NDArray[np.uint16]:
        tokenizer: Tokenizer = local.tokenizer
        return tokenizer.encode_documents(texts)

    def next_chunk() -> Chunk:
        nonlocal skip
        place, future = pending.popleft()
        ids = future.result()
        dropped = min(skip, len(ids))
        skip -= dropped
        return TokenPosition(place=place, skip=dropped), ids[dropped:]

    pool = ThreadPoolExecutor(workers, initializer=make_local_tokenizer)
    try:
        for group in grouped(batches, lambda batch: sum(map(len, batch.texts)), CHUNK_CHARACTERS):
            texts = [text for batch in group for text in batch.texts]
            pending.append((group[0].place, pool.submit(encode, texts)))
            if len(pending) > CHUNKS_AHEAD * workers:
                yield next_chunk()
        while pending:
            yield next_chunk()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a document may be long, and Ctrl-C does not wait for its end


def _split_into_files(
    chunks: Iterable[Chunk], size: Callable[[int], int], number: int
) -> Iterator[tuple[NDArray[np.uint16], TokenPosition]]:
    """Yields the tokens of file ``number`` and of the files after it, each with its end position."""
    parts: list[NDArray[np.uint16]] = []
    need = size(number)
    end = TokenPosition()
    for position, ids in chunks:
        used = 0
        while need and need <= len(ids) - used:
            parts.append(ids[used : used + need])
            used += need
            yield np.concatenate(parts), position.model_copy(update={"skip": position.skip + used})
            number += 1
            parts, need = [], size(number)
        if not need:
            return
        parts.append(ids[used:])
        need -= len(ids) - used
        end = position.model_copy(update={"skip": position.skip + len(ids)})
    if any(len(part) for part in parts):
        yield np.concatenate(parts), end


class _TokenEstimate:
    """Estimates the total number of tokens from the number in the first ``rows`` rows."""

    def __init__(self, limit: int | None, documents: Documents) -> None:
        self._limit, self._rows, self._tokens = limit, documents.rows(), documents.tokens()

    def __call__(self, tokens: int, rows: int) -> float | None:
        whole = tokens / rows * self._rows if rows and self._rows else self._tokens
        return min((total for total in (self._limit, whole) if total), default=None)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Creates the folder and locks it for this process. Removes it at the end if it is empty."""
    with _write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise InvalidInput("--out", str(folder), "is being written by another process", "wait for it") from error
    try:
        remove_unfinished(folder)
        yield
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
        lock.release()


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Converts an OSError to InvalidInput."""
    try:
        yield
    except OSError as error:
        problem, remedy = f"cannot be written to ({error.strerror})", "make it writable, or choose another"
        raise InvalidInput("--out", str(folder), problem, remedy) from error


def _load_manifest(folder: Path, recipe: Recipe) -> Manifest | None:
    """Returns the manifest of the finished files in the folder, or None if there are none.

    Raises:
        InvalidInput: the folder holds tokens of another recipe, or files without a manifest.
    """
    remedy = "choose another --out, or delete it"
    path = folder / MANIFEST
    if not path.exists():
        if found := sorted(folder.glob("*.bin")):
            problem = f"has {found[0].name}, but no {MANIFEST} that describes it"
            raise InvalidInput("--out", str(folder), problem, remedy)
        return None
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidInput("--out", str(folder), f"has a {MANIFEST} that cannot be read", remedy) from error
    other = {name: value for name, value in manifest.recipe if value != getattr(recipe, name)}
    if not manifest.files:
        return None
    if other:
        settings = ", ".join(f"{name} {value!r}" for name, value in other.items())
        raise InvalidInput("--out", str(folder), f"has tokens with other settings: {settings}", remedy)
    return manifest


def _verify_files(folder: Path, manifest: Manifest, report: Callable[[str], None]) -> Manifest:
    """Returns the manifest up to the first file that is missing or has changed."""
    for number, file in enumerate(manifest.files):
        path = folder / file.name
        if not path.is_file() or sha256(path) != file.sha256:
            report(f"{file.name} is missing or damaged: writing it again, and all files after it")
            return manifest.model_copy(update={"complete": False, "files": manifest.files[:number]})
    report(f"verified {len(manifest.files)} files by their SHA-256")
    return manifest


def _save(folder: Path, manifest: Manifest) -> None:
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def _too_few(recipe: Recipe, tokens: int) -> InvalidInput:
    return InvalidInput(
        "--val-tokens",
        recipe.validation,
        f"leaves no training tokens: the source has {tokens} tokens",
        f"lower it, for example to {max(1, tokens // 20)}",
    )

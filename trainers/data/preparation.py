"""From a stream of documents to a folder of token files that studies share, interrupted and gone on with at will.

    FOLDER/val-00000.bin              the first tokens of the source, as in the published sets
    FOLDER/train-00000.bin ...        the rest, cut every ``shard_tokens``, wherever a document stands
    FOLDER/manifest.json              settings, revision, and of each finished file its SHA-256 and what comes next

The manifest is written after each file, so that a file that it does not name is made again, with the same bytes.
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

from search_spaces.cell import Frozen
from search_spaces.errors import InvalidInput
from trainers.data.documents import Batch, Documents, Place
from trainers.data.shards import write_shard
from trainers.data.sources import grouped
from trainers.data.tokenizer import UNTRAINED, Tokenizer
from trainers.data.verification import MANIFEST, FileName
from trainers.storage.files import remove_unfinished, sha256, write_atomically

CHUNK_CHARACTERS = 1 << 17
"""Text that one thread encodes at once: in cache, and worth a thread's waking."""
CHUNKS_AHEAD = 16
"""Chunks a worker that are read before they are needed: what keeps threads busy while a file is written."""


class Recipe(Frozen):
    """What decides every byte of the token files, beside the source's own content."""

    source: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    tokenizer: str = "gpt2"
    shard_tokens: int = 100_000_000
    val_tokens: int | None = None
    """None takes as many as a shard has."""
    tokens: int | None = None
    """Of both splits; None takes the whole source."""

    @property
    def validation(self) -> int:
        return self.val_tokens or self.shard_tokens

    @property
    def documents(self) -> Documents:
        return Documents(self.source, config=self.config, split=self.split, column=self.column)

    def check(self) -> None:
        """
        Raises:
            InvalidInput: a field is not what it can be, named as the option of the command line.
        """
        if self.tokenizer not in UNTRAINED:
            raise InvalidInput("--tokenizer", self.tokenizer, "is not known", f"choose from {', '.join(UNTRAINED)}")
        for name in ("shard_tokens", "val_tokens", "tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidInput(f"--{name.replace('_', '-')}", value, "is no number of tokens", "give 1 or more")
        if self.tokens is not None and self.tokens <= self.validation:
            problem = f"leaves nothing for training behind {self.validation} validation tokens"
            raise InvalidInput("--tokens", self.tokens, problem, "raise it, or lower --val-tokens")

    def size(self, number: int) -> int:
        """Tokens of file ``number``, 0 behind the last one."""
        before = self.validation + (number - 1) * self.shard_tokens if number else 0
        size = self.shard_tokens if number else self.validation
        return size if self.tokens is None else max(0, min(size, self.tokens - before))


class Position(Frozen):
    """Between two tokens: ``skip`` tokens behind a place between two documents."""

    place: Place = Place()
    skip: int = 0


class Finished(Frozen):
    """A file that is there as it should be."""

    name: FileName
    tokens: int
    documents: int
    """Those that begin in it."""
    sha256: str
    end: Position


class Manifest(Frozen):
    recipe: Recipe
    revision: str
    vocab_size: int
    complete: bool = False
    files: tuple[Finished, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(file.tokens for file in self.files)

    @property
    def documents(self) -> int:
        return sum(file.documents for file in self.files)


Chunk = tuple[Position, NDArray[np.uint16]]


@dataclass(frozen=True)
class Observer:
    """Who is told how a preparation goes."""

    report: Callable[[str], None] = lambda _line: None
    """Told in a line what was done."""
    advance: Callable[[int, float | None], None] = lambda _done, _expected: None
    """Told the tokens so far, and how many are expected where that can be known."""


def tokenize(recipe: Recipe, folder: Path, *, workers: int, observer: Observer = Observer()) -> Manifest:
    """Write the token files of ``recipe`` to ``folder``, or those that are missing there.

    Files that are there are verified by their checksum; one that is damaged is made again, with those after it.

    Args:
        workers: threads that encode. The bytes do not depend on it.

    Raises:
        InvalidInput: a setting, the source or the folder can not be used, or the folder holds something else.
    """
    recipe.check()
    documents = recipe.documents
    tokenizer = UNTRAINED[recipe.tokenizer]()
    with _claimed(folder):
        manifest = _known(folder, recipe)
        if manifest and (manifest := _verified(folder, manifest, observer.report)).complete:
            return manifest
        revision = documents.revision(manifest.revision if manifest else None)
        if manifest and revision != manifest.revision:
            problem, remedy = "has changed since its tokens were begun", f"choose another --out, or delete {folder}"
            raise InvalidInput("SOURCE", recipe.source, problem, remedy)
        manifest = manifest or Manifest(recipe=recipe, revision=revision, vocab_size=tokenizer.vocab_size)
        if manifest.files:
            observer.report(f"going on behind {manifest.tokens:,} tokens in {len(manifest.files)} files")
        return _written(folder, manifest, documents, tokenizer, workers, observer)


def _written(
    folder: Path, manifest: Manifest, documents: Documents, tokenizer: Tokenizer, workers: int, observer: Observer
) -> Manifest:
    """Write the files that ``manifest`` lacks; returns it with them."""
    recipe = manifest.recipe
    start = manifest.files[-1].end if manifest.files else Position()
    expected = _Expected(recipe.tokens, documents)

    def watched() -> Iterator[Chunk]:
        done = manifest.tokens
        batches = documents.batches(manifest.revision, start.place)
        for position, ids in _encoded(batches, start.skip, UNTRAINED[recipe.tokenizer], workers):
            goal = expected(done - position.skip, position.place.rows)
            done += len(ids)
            observer.advance(done, goal)
            yield position, ids

    for ids, end in _cut(watched(), recipe.size, len(manifest.files)):
        number = len(manifest.files)
        if not number and len(ids) < recipe.validation:
            raise _too_few(recipe, len(ids))
        name = f"train-{number - 1:05}.bin" if number else "val-00000.bin"
        with _writing(folder):
            if not number:
                _save(folder, manifest)  # from now on the folder is this recipe's
            write_shard(folder / name, ids)
            begun = int(np.count_nonzero(ids == tokenizer.end_of_text))
            file = Finished(name=name, tokens=len(ids), documents=begun, sha256=sha256(folder / name), end=end)
            manifest = manifest.model_copy(update={"files": (*manifest.files, file)})
            _save(folder, manifest)
        observer.report(f"{name}: {len(ids):,} tokens")
    if len(manifest.files) < 2:
        raise _too_few(recipe, manifest.tokens)
    manifest = manifest.model_copy(update={"complete": True})
    with _writing(folder):
        _save(folder, manifest)
    return manifest


def _encoded(
    batches: Iterable[Batch], skip: int, make_tokenizer: Callable[[], Tokenizer], workers: int
) -> Iterator[Chunk]:
    """The ids of the batches in their order, without the first ``skip``; each chunk with the position of its first."""
    pending: deque[tuple[Place, Future[NDArray[np.uint16]]]] = deque()
    own = threading.local()

    def equip() -> None:
        # The thread that uses an encoding first has its regular expression's scratch space to itself; all others take
        # turns through a lock, which costs them a third of their speed.
        own.tokenizer = make_tokenizer()

    def encode(texts: list[str]) -> NDArray[np.uint16]:
        tokenizer: Tokenizer = own.tokenizer
        return tokenizer.encode_documents(texts)

    def chunk() -> Chunk:
        nonlocal skip
        place, future = pending.popleft()
        ids = future.result()
        dropped = min(skip, len(ids))
        skip -= dropped
        return Position(place=place, skip=dropped), ids[dropped:]

    pool = ThreadPoolExecutor(workers, initializer=equip)
    try:
        for group in grouped(batches, lambda batch: sum(map(len, batch.texts)), CHUNK_CHARACTERS):
            texts = [text for batch in group for text in batch.texts]
            pending.append((group[0].place, pool.submit(encode, texts)))
            if len(pending) > CHUNKS_AHEAD * workers:
                yield chunk()
        while pending:
            yield chunk()
    finally:
        pool.shutdown(cancel_futures=True)


def _cut(
    chunks: Iterable[Chunk], size: Callable[[int], int], number: int
) -> Iterator[tuple[NDArray[np.uint16], Position]]:
    """The tokens of file ``number`` and of those after it, each with the position behind it."""
    parts: list[NDArray[np.uint16]] = []
    need = size(number)
    end = Position()
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


class _Expected:
    """How many tokens there will be, as far as that can be told from how many the first ``rows`` rows have."""

    def __init__(self, limit: int | None, documents: Documents) -> None:
        self._limit, self._rows, self._tokens = limit, documents.rows(), documents.tokens()

    def __call__(self, tokens: int, rows: int) -> float | None:
        whole = tokens / rows * self._rows if rows and self._rows else self._tokens
        return min((goal for goal in (self._limit, whole) if goal), default=None)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make the folder for this process alone, and remove it again if it stays empty."""
    with _writing(folder):
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
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem, remedy = f"can not be written to ({error.strerror})", "make it so, or choose another"
        raise InvalidInput("--out", str(folder), problem, remedy) from error


def _known(folder: Path, recipe: Recipe) -> Manifest | None:
    """The manifest of the finished files in the folder, None if there are none.

    Raises:
        InvalidInput: it is of another recipe, or not of this function.
    """
    remedy = "choose another --out, or delete it"
    path = folder / MANIFEST
    if not path.exists():
        if found := sorted(folder.glob("*.bin")):
            problem = f"holds {found[0].name}, and no {MANIFEST} that says what it is"
            raise InvalidInput("--out", str(folder), problem, remedy)
        return None
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidInput("--out", str(folder), f"has a {MANIFEST} that can not be read", remedy) from error
    other = {name: value for name, value in manifest.recipe if value != getattr(recipe, name)}
    if not manifest.files:
        return None
    if other:
        settings = ", ".join(f"{name} {value!r}" for name, value in other.items())
        raise InvalidInput("--out", str(folder), f"holds tokens of other settings: {settings}", remedy)
    return manifest


def _verified(folder: Path, manifest: Manifest, report: Callable[[str], None]) -> Manifest:
    """The manifest up to the first file that is not what it was when it was written."""
    for number, file in enumerate(manifest.files):
        path = folder / file.name
        if not path.is_file() or sha256(path) != file.sha256:
            report(f"{file.name} is missing or damaged: made again, with those after it")
            return manifest.model_copy(update={"complete": False, "files": manifest.files[:number]})
    report(f"verified {len(manifest.files)} files by their SHA-256")
    return manifest


def _save(folder: Path, manifest: Manifest) -> None:
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def _too_few(recipe: Recipe, tokens: int) -> InvalidInput:
    return InvalidInput(
        "--val-tokens",
        recipe.validation,
        f"leaves nothing for training: the source has {tokens} tokens",
        f"lower it, for example to {max(1, tokens // 20)}",
    )

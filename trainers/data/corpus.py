"""Texts on this machine: which files are documents, and which of them are used for validation."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from search_spaces.errors import InvalidInput, expand, printable, reason
from search_spaces.frozen import digest
from trainers.data.shards import match

VALIDATION_SHARE = 0.05
"""Share of the documents, or of a single document's characters, that is used for validation."""
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
GENERATED_PREFIXES = ("_sysconfigdata", "config-")
"""Files that the build of this Python wrote into its library, with the paths and flags of one machine."""


@dataclass(frozen=True)
class Document:
    """A file, or part of one."""

    name: str
    """Path relative to the corpus, with '/' as separator."""
    path: Path
    part: tuple[float, float] = (0.0, 1.0)
    """Start and end, as shares of the characters."""

    def hash(self) -> bytes:
        """Orders documents independently of their names' order. A name need not be UTF-8."""
        return hashlib.sha256(self.name.encode(errors="surrogateescape")).digest()

    def text(self) -> str | None:
        """Returns the unmodified text, including line ends; "" if the file is empty, None if it is not UTF-8 text.

        Raises:
            InvalidInput: the file cannot be read.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise InvalidInput(
                "data.path",
                str(self.path),
                f"cannot be read ({reason(error)})",
                "make it readable or remove it",
            ) from error
        if not content.strip():
            return ""
        if b"\0" in content:
            return None
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            return None
        start, end = (int(share * len(text)) for share in self.part)
        return text[start:end]


@dataclass(frozen=True)
class Corpus:
    """Candidate documents, sorted by name."""

    name: str
    files: tuple[Document, ...]

    @property
    def fingerprint(self) -> str:
        """Identifies a corpus without reading it: it changes with any file's name, size or modification time."""
        stats = [(file.name, file.path.stat()) for file in self.files]
        return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    def documents(self) -> tuple[list[Document], list[Document]]:
        """Returns the UTF-8 documents for training and those for validation.

        Validation is the twentieth of the documents, but at least one, whose names have the smallest hashes, so that
        it hardly changes when documents are added or removed. A single document contributes its last 5 %.

        Raises:
            InvalidInput: no file is UTF-8 text.
        """
        found = self._by_use["text"]
        if not found:
            raise InvalidInput(
                "data.path", self.name, f"has no UTF-8 text in its {len(self.files)} files", "give files with text"
            )
        if len(found) == 1:
            cut = 1 - VALIDATION_SHARE
            return [replace(found[0], part=(0.0, cut))], [replace(found[0], part=(cut, 1.0))]
        by_hash = sorted(found, key=Document.hash)
        kept = set(by_hash[: max(1, int(VALIDATION_SHARE * len(found)))])
        return [d for d in found if d not in kept], [d for d in found if d in kept]

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is not used of the corpus and why, as sentences without their period."""
        total, by_use = len(self.files), self._by_use
        return tuple(
            f"{len(by_use[use])} of {total} files {'is' if len(by_use[use]) == 1 else 'are'} {use}, "
            f"such as {printable(by_use[use][0].name)}: left out"
            for use in ("not UTF-8 text", "empty")
            if by_use[use]
        )

    @cached_property
    def _by_use(self) -> dict[str, list[Document]]:
        by_use: dict[str, list[Document]] = {"text": [], "empty": [], "not UTF-8 text": []}
        for file in self.files:
            text = file.text()
            by_use["not UTF-8 text" if text is None else "text" if text else "empty"].append(file)
        return by_use


def standard_library() -> Corpus:
    """Returns the sources of the running Python's standard library: about 12 MB in 730 files for Python 3.11.

    It excludes the tests, which are another 19 MB but missing from most distributions' packages, and the files that the
    build of this Python generated, so that equal versions have equal sources.

    Raises:
        InvalidInput: this Python is installed without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = _walk(root, lambda name: name not in EXCLUDED_FOLDERS and not name.startswith((".", *GENERATED_PREFIXES)))
    sources = [path for path in files if path.suffix == ".py"]
    if not sources:
        raise InvalidInput(
            "data.source",
            "builtin",
            f"found no Python sources in {root}",
            "set data.source to text and give a data.path",
        )
    return _corpus(f"python-{platform.python_version()}", root, sources)


def local(pattern: str, origin: str = "data.path") -> Corpus:
    """Returns a file, all visible files below a folder, or the files that a glob matches.

    Raises:
        InvalidInput: there is no such file.
    """
    path = expand(pattern, origin)
    if path.is_dir():
        root, files = path, list(_walk(path, lambda name: not name.startswith(".")))
    else:
        files = [path] if path.is_file() else [found for found in match(pattern, origin) if found.is_file()]
        root = Path(os.path.commonpath([file.parent for file in files])) if files else path
    if not files:
        raise InvalidInput(
            origin,
            pattern,
            f"matches no file (from {Path.cwd()})",
            "give a folder, a file or a glob of text files",
        )
    return _corpus((files[0] if files == [path] else root).stem, root, files)


def _corpus(name: str, root: Path, files: list[Path]) -> Corpus:
    readable = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "text"
    documents = (Document(file.relative_to(root).as_posix(), file) for file in files)
    return Corpus(readable, tuple(sorted(documents, key=lambda document: document.name)))


def _walk(root: Path, keep: Callable[[str], bool]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if keep(name)]
        paths = (Path(folder, name) for name in names if keep(name))
        yield from (path for path in paths if path.is_file())

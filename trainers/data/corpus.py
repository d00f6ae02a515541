"""Texts on this machine: which files are documents, and which of them are kept for validation."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from search_spaces.cell import digest
from search_spaces.errors import InvalidInput
from trainers.data.shards import match

VALIDATION = 0.05
"""Share of the documents, or of a single document's characters, that is kept for validation."""
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
MACHINE_MADE = ("_sysconfigdata", "config-")
"""Prefixes of what the build of this Python wrote into its library: paths and flags of one machine."""


@dataclass(frozen=True)
class Document:
    """A file, or a part of it."""

    name: str
    """Path relative to the corpus, with '/'."""
    path: Path
    part: tuple[float, float] = (0.0, 1.0)
    """Start and end, as shares of the characters."""

    def text(self) -> str | None:
        """The text as it stands, line ends included; None if the file is empty or no UTF-8 text.

        Raises:
            InvalidInput: the file can not be read.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise InvalidInput(
                "data.path",
                str(self.path),
                f"can not be read ({type(error).__name__})",
                "make it readable or remove it",
            ) from error
        if b"\0" in content or not content.strip():
            return None
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            return None
        start, end = (int(share * len(text)) for share in self.part)
        return text[start:end]


@dataclass(frozen=True)
class Corpus:
    """Files that may be documents, sorted by name."""

    name: str
    files: tuple[Document, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with any file's name, size or time of change: to know a corpus again without reading it."""
        stats = [(file.name, file.path.stat()) for file in self.files]
        return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    def documents(self) -> tuple[list[Document], list[Document]]:
        """Those that are UTF-8 text: for training, and for validation.

        Validation is the twentieth, at least one, whose names have the smallest hashes, so that it stays nearly the
        same as documents come and go. A single document gives its last 5 %.

        Raises:
            InvalidInput: there is none.
        """
        found = [file for file in self.files if file.text() is not None]
        if not found:
            raise InvalidInput(
                "data.path", self.name, f"holds no UTF-8 text in its {len(self.files)} files", "give files with text"
            )
        if len(found) == 1:
            cut = 1 - VALIDATION
            return [replace(found[0], part=(0.0, cut))], [replace(found[0], part=(cut, 1.0))]
        by_hash = sorted(found, key=lambda document: hashlib.sha256(document.name.encode()).digest())
        kept = set(by_hash[: max(1, int(VALIDATION * len(found)))])
        return [d for d in found if d not in kept], [d for d in found if d in kept]


def standard_library() -> Corpus:
    """The sources of the running Python's standard library: about 12 MB in some 730 files for 3.11.

    Without its tests, which are another 19 MB where they are installed and absent from most distributions' packages,
    and without what the build of this Python wrote: equal versions have equal sources.

    Raises:
        InvalidInput: this Python came without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = _walk(root, lambda name: name not in NOT_LIBRARY and not name.startswith((".", *MACHINE_MADE)))
    sources = [path for path in files if path.suffix == ".py"]
    if not sources:
        raise InvalidInput(
            "data.source", "builtin", f"finds no Python sources in {root}", "choose data.source text with a data.path"
        )
    return _corpus(f"python-{platform.python_version()}", root, sources)


def local(pattern: str, origin: str = "data.path") -> Corpus:
    """A file, all files below a folder but the hidden ones, or the files that a glob matches.

    Raises:
        InvalidInput: there is no such file.
    """
    path = Path(pattern).expanduser().absolute()
    if path.is_dir():
        root, files = path, list(_walk(path, lambda name: not name.startswith(".")))
    else:
        files = [path] if path.is_file() else [found for found in match(pattern) if found.is_file()]
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

"""A working directory for a job: what of a folder goes to the cluster, and how much that is.

What is shown and limited is exactly what goes: an archive of the files that neither ``.gitignore`` nor ``.rayignore``
names, without what no driver needs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from search_spaces.errors import InvalidInput

NEVER = GitIgnoreSpec.from_lines(
    [
        ".git",
        ".venv",
        "venv/",
        "node_modules/",
        "__pycache__/",
        "*.egg-info/",
        ".*_cache/",
        "/data/",
        "/mlruns/",
        "*.bin",
        "*.parquet",
        "*.pt",
        "*.safetensors",
        "*.db",
    ]
)
"""Versions, environments, caches, and data, which belong on the cluster's storage."""
IGNORE_FILES = (".gitignore", ".rayignore")
LARGEST = 5
"""Files that a refusal names."""
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Shipment:
    """Files of a folder that go to the cluster."""

    folder: Path
    sizes: dict[Path, int]
    """Bytes of each file, by its path within the folder."""

    @property
    def megabytes(self) -> float:
        return sum(self.sizes.values()) / MEGABYTE

    def __str__(self) -> str:
        return f"{self.folder}: {len(self.sizes)} files, {self.megabytes:.1f} MB"

    @classmethod
    def of(cls, folder: Path, *, max_megabytes: float) -> Shipment:
        """
        Raises:
            InvalidInput: no such folder, or it holds more than ``max_megabytes``; the message names the largest files.
        """
        folder = folder.expanduser().resolve()
        if not folder.is_dir():
            raise InvalidInput("--working-dir", str(folder), "is no folder", "give the one that holds the sources")
        found = cls(folder, {path: (folder / path).stat().st_size for path in sorted(needed(folder))})
        if found.megabytes > max_megabytes:
            largest = sorted(found.sizes, key=lambda path: -found.sizes[path])[:LARGEST]
            named = ", ".join(f"{path} ({found.sizes[path] / MEGABYTE:.1f} MB)" for path in largest)
            problem = f"is {found.megabytes:.1f} MB, above {max_megabytes:g} MB; the largest files are {named}"
            raise InvalidInput(
                "--working-dir", str(folder), problem, "name them in .rayignore, or raise --max-megabytes"
            )
        return found

    def archive(self, place: Path) -> Path:
        """The files as one archive in the folder ``place``; the same files make the same bytes."""
        path = place / "working-dir.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for file in self.sizes:
                entry = zipfile.ZipInfo(file.as_posix())  # of no date
                entry.external_attr = (self.folder / file).stat().st_mode << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                out.writestr(entry, (self.folder / file).read_bytes())
        return path


def needed(folder: Path) -> Iterator[Path]:
    """Paths of the files of a folder that go along, relative to it; symbolic links lead nowhere else and stay out."""

    def within(here: Path, above: tuple[tuple[Path, GitIgnoreSpec], ...]) -> Iterator[Path]:
        own = tuple((here, GitIgnoreSpec.from_lines(lines(here / name))) for name in IGNORE_FILES)
        rules = (*above, *own)
        for path in here.iterdir():
            if path.is_symlink() or any(ignores(path, base, spec) for base, spec in rules):
                continue
            if path.is_dir():
                if not is_home(path):
                    yield from within(path, rules)
            elif path.is_file():
                yield path.relative_to(folder)

    return within(folder, ((folder, NEVER),))


def ignores(path: Path, base: Path, spec: GitIgnoreSpec) -> bool:
    name = path.relative_to(base).as_posix()
    return spec.match_file(f"{name}/" if path.is_dir() else name)


def is_home(folder: Path) -> bool:
    """Whether studies ran in it."""
    return any(folder.glob("studies/*/ledger.jsonl"))


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []

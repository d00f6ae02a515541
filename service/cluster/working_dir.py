"""The working directory of a job: which files of a folder are uploaded to the cluster, and how large they are.

The files that are listed and limited are exactly those that are uploaded: the files that neither ``.gitignore`` nor
``.rayignore`` excludes, without those that no driver needs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from search_spaces.errors import InvalidInput, expand, printable

ALWAYS_IGNORED = GitIgnoreSpec.from_lines(
    [
        ".git", ".venv", "venv/", "node_modules/", "__pycache__/", "*.egg-info/", ".*_cache/", "/data/", "/mlruns/",
        "*.bin", "*.parquet", "*.pt", "*.safetensors", "*.db",
    ]
)  # fmt: skip
"""Version control, environments, caches, and data, which belongs on the cluster's storage."""
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class WorkingDir:
    """The files of a folder that are uploaded."""

    folder: Path
    sizes: dict[Path, int]
    """Bytes of each file, by its path relative to the folder."""

    @property
    def megabytes(self) -> float:
        return sum(self.sizes.values()) / MEGABYTE

    def __str__(self) -> str:
        return f"{self.folder}: {len(self.sizes)} files, {self.megabytes:.1f} MB"

    @property
    def runs_itself(self) -> bool:
        """Whether these are sources of ``oec``, which run in place of the installed package."""
        return Path("service/cli/__main__.py") in self.sizes

    @classmethod
    def scan(cls, folder: Path, *, max_megabytes: float) -> WorkingDir:
        """Collect the files of a folder.

        Raises:
            InvalidInput: the folder does not exist, or has more than ``max_megabytes``; the message names the largest
                files.
        """
        folder = expand(str(folder), "--working-dir").resolve()
        if not folder.is_dir():
            raise InvalidInput("--working-dir", str(folder), "is not a folder", "give the folder with the sources")
        files = sorted(files_to_upload(folder, ((folder, ALWAYS_IGNORED),)))
        if wrong := [file for file in files if printable(file) != str(file)]:
            problem, remedy = "is not valid UTF-8, which an archive requires", "rename it, or list it in .rayignore"
            raise InvalidInput("--working-dir", str(wrong[0]), problem, remedy)
        found = cls(folder, {file.relative_to(folder): file.stat().st_size for file in files})
        if found.megabytes > max_megabytes:
            largest = sorted(found.sizes, key=lambda path: -found.sizes[path])[:5]
            named = ", ".join(f"{path} ({found.sizes[path] / MEGABYTE:.1f} MB)" for path in largest)
            problem = f"is {found.megabytes:.1f} MB, above {max_megabytes:g} MB; the largest files are {named}"
            remedy = "list them in .rayignore, or raise --max-megabytes"
            raise InvalidInput("--working-dir", str(folder), problem, remedy)
        return found

    def archive(self, target: Path) -> Path:
        """Write the files into one archive in the folder ``target``. Equal files make an archive of equal bytes."""
        path = target / "working-dir.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for file in self.sizes:
                entry = zipfile.ZipInfo(file.as_posix())  # without the file's modification time
                entry.external_attr = (self.folder / file).stat().st_mode << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                out.writestr(entry, (self.folder / file).read_bytes())
        return path


def files_to_upload(folder: Path, inherited: tuple[tuple[Path, GitIgnoreSpec], ...]) -> Iterator[Path]:
    """The files to upload. Symbolic links are skipped: they may lead anywhere.

    Args:
        inherited: the rules of the folders above, each with the folder that it is relative to.
    """
    files = [file for name in (".gitignore", ".rayignore") if (file := folder / name).is_file()]
    texts = [file.read_text(encoding="utf-8", errors="surrogateescape") for file in files]
    rules = (*inherited, *((folder, GitIgnoreSpec.from_lines(text.splitlines())) for text in texts))
    for path in folder.iterdir():
        slash = "/" if path.is_dir() else ""
        names = ((spec, f"{path.relative_to(base).as_posix()}{slash}") for base, spec in rules)
        if path.is_symlink() or any(spec.match_file(name) for spec, name in names):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not any(path.glob("studies/*/ledger.jsonl")):  # a home in which studies have run
            yield from files_to_upload(path, rules)

"""Which files of a folder are sent to a cluster."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from search_spaces.errors import InvalidInput
from service.cluster.working_dir import WorkingDir

ROOT = Path(__file__).parents[3]


def make(folder: Path, files: dict[str, str | int]) -> Path:
    """Writes files to a folder; a number stands for that many bytes."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else bytes(content))
    return folder


def names(folder: Path) -> set[str]:
    return {path.as_posix() for path in WorkingDir.scan(folder, max_megabytes=50).sizes}


def test_ignore_files_apply_to_their_folder_and_below(tmp_path: Path) -> None:
    make(
        tmp_path,
        {
            ".gitignore": "*.log\n/build/\n!kept.log",
            ".rayignore": "notes/\n",
            "a.log": "",
            "kept.log": "",
            "build/a": "",
            "deep/build/a": "",
            "notes/a": "",
            "deep/.gitignore": "secret\n",
            "deep/secret": "",
            "secret": "",
        },
    )
    assert names(tmp_path) == {
        ".gitignore", ".rayignore", "kept.log", "deep/.gitignore", "deep/build/a", "secret",
    }  # fmt: skip


def test_repositories_environments_homes_data_and_links_are_not_sent(tmp_path: Path) -> None:
    make(
        tmp_path,
        {
            ".git/config": "",
            ".venv/python": "",
            "pkg/__pycache__/a": "",
            ".mypy_cache/a": "",
            "data/shard.txt": "",
            "train.bin": "",
            "results/studies/mine/ledger.jsonl": "",
            "results/mlflow.txt": "",
            "pkg/data/code.py": "",
            "pkg/studies/mine.yaml": "",
        },
    )
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "folder").symlink_to(ROOT)
    assert names(tmp_path) == {"pkg/data/code.py", "pkg/studies/mine.yaml"}


def test_a_folder_above_the_limit_is_refused_and_its_largest_files_are_named(tmp_path: Path) -> None:
    make(tmp_path, {"small": 10, "big": 2_000_000, "deep/bigger": 3_000_000})
    assert str(WorkingDir.scan(tmp_path, max_megabytes=5.1)) == f"{tmp_path}: 3 files, 5.0 MB"
    with pytest.raises(InvalidInput) as refused:
        WorkingDir.scan(tmp_path, max_megabytes=4)
    assert refused.value.field == "--working-dir"
    assert "is 5.0 MB, above 4 MB; the largest files are deep/bigger (3.0 MB), big (2.0 MB)" in str(refused.value)
    assert "--max-megabytes" in str(refused.value)


def test_an_archive_holds_what_was_shown_and_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    source = make(tmp_path / "source", {"a.py": "a = 1\n", "deep/b.py": "b = 1\n"})
    (source / "a.py").chmod(0o755)
    working_dir = WorkingDir.scan(source, max_megabytes=1)
    places = [tmp_path / "one", tmp_path / "two"]
    archives = []
    for place in places:
        place.mkdir()
        archives.append(working_dir.archive(place))
        (source / "a.py").touch()
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as archive:
        assert archive.namelist() == ["a.py", "deep/b.py"]
        archive.extractall(tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "b.py").read_text() == "b = 1\n"


def test_what_a_driver_and_its_workers_import_is_sent_from_a_checkout() -> None:
    working_dir = WorkingDir.scan(ROOT, max_megabytes=2)
    folders = {path.parts[0] for path in working_dir.sizes if len(path.parts) > 1}
    assert {"search_spaces", "trainers", "service", "dashboards"} <= folders
    assert not {"tests", "docs", "benchmarks", "docker"} & folders

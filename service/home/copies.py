"""This machine's copy of a home in a bucket: downloads and uploads. They do nothing if the home is a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from search_spaces.errors import InvalidInput
from search_spaces.study import is_name
from service.home import writer
from service.home.bucket_ledger import BucketLedger
from service.home.layout import Home
from trainers.storage.bucket import Mirror, map_concurrently, refresh


def pull(home: Home, *names: str) -> None:
    """Download the files and ledgers of these studies, or of all. A study that runs on this machine is up to date."""
    if bucket := home.bucket:
        found = names or (bucket / "ledgers").folders()
        map_concurrently(lambda name: _pull(home, name), (name for name in found if is_name(name)))


def _pull(home: Home, name: str) -> None:
    assert home.bucket
    refresh(home.study(name) / "study.yaml", home.bucket, f"ledgers/{name}/study.yaml")
    home.study(name).mkdir(exist_ok=True)
    path = home.ledger(name)
    content = BucketLedger(home.bucket, name).content(path.read_bytes() if path.is_file() else b"")
    with path.open("a+b", buffering=0) as file:
        try:
            writer.lock(file, tries=1)
        except OSError:  # a driver on this machine writes it
            return
        file.seek(0)
        before = file.read()
        if not content.startswith(before):
            file.truncate(0)
            before = b""
        file.write(content[len(before) :])


def download_metrics(home: Home, cells: Iterable[tuple[str, str]]) -> None:
    """Download the current metrics of these cells, each given with its study."""
    if bucket := home.bucket:
        names = [f"studies/{study}/cells/{cell_id}/metrics.jsonl" for cell_id, study in cells]
        map_concurrently(lambda name: refresh(home.path / name, bucket, name), names)


def download_folder(home: Home, folder: str, suffix: str = "") -> None:
    """Download the current files below a folder of the home whose names end in ``suffix``."""
    if bucket := home.bucket:
        names = [name for name in (bucket / folder).names() if name.endswith(suffix) and ".." not in name.split("/")]
        map_concurrently(lambda name: refresh(home.path / name, bucket, name), [f"{folder}/{name}" for name in names])


def download_once(home: Home, folder: Path, last: str) -> bool:
    """Download a folder that never changes once ``last``, its last file, is written; whether it is there now."""
    found = mirror(home, folder)
    return found is not None and found.fetch(last)


def upload(home: Home, folder: Path, last: str | None = None) -> None:
    """Upload what is new in a folder.

    Args:
        last: the last file of a folder that never changes afterwards: nothing is new once the bucket has it.
    """
    found = mirror(home, folder)
    if found and not (last and found.bucket.stamp(last)):
        found.push()


def mirror(home: Home, folder: Path, of: Path | None = None, archive: str | None = None) -> Mirror | None:
    """A local folder with its copy in the bucket; None if the home is a folder.

    Args:
        of: the path in the home that ``folder`` stands for, if not ``folder`` itself.
        archive: see ``Mirror``.
    """
    if not home.bucket:
        return None
    return Mirror(folder, home.bucket / (of or folder).relative_to(home.path).as_posix(), archive)


def list_files(home: Home, folder: str) -> dict[str, int]:
    """Bytes of every file below a folder of the home, by its name in the home.

    Raises:
        InvalidInput: the folder is a link out of the home.
    """
    if home.bucket:
        return {f"{folder}/{name}": stamp.bytes for name, stamp in (home.bucket / folder).names().items()}
    root = home.path / folder
    if root.resolve() != root:  # the home itself is resolved
        problem = f"leads out of the home, to {root.resolve()}"
        raise InvalidInput("--home", str(root), problem, "remove the symbolic link, or choose another --home")
    paths = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(home.path).as_posix(): path.stat().st_size for path in sorted(paths)}


def remove_files(home: Home, names: Iterable[str]) -> None:
    """Remove files that ``list_files`` named, and folders left empty; a description before its file."""
    names = sorted(names)
    if home.bucket:
        home.bucket.remove(names)
    for path in (home.path / name for name in names):  # for a bucket, the local copies
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()

"""Buckets: objects in S3 (or a compatible store) and Google Cloud Storage, through fsspec.

Files are edited in a local folder and uploaded as whole objects, which replace the previous ones atomically. In place
of locks, an object store offers to create an object only if it does not exist.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock

from search_spaces.errors import InvalidInput
from trainers.storage.files import atomic_writer

T = TypeVar("T")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""The package that fsspec needs for each scheme; both are in the extra ``buckets``."""
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60}},
    "gs": {"requests_timeout": 60},
}
OPEN_TIMEOUT_S = 15.0
"""How long to wait for the first response of a store."""
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Pauses before a request is retried, in addition to the retries of the client itself."""
MAX_REQUESTS = 16
"""Concurrent requests."""
SET_ASIDE = "unusable-"
"""How the names of folders begin that stay on the machine where they were set aside."""
EXPECTED_ERRORS = (FileNotFoundError, FileExistsError)
"""Errors that are a valid response of the store."""

logger = logging.getLogger(__name__)


class Stamp(NamedTuple):
    """Size and modification time of an object; they differ between two contents."""

    bytes: int
    modified: float
    """Seconds since 1970, by the store's clock."""


def is_bucket(given: str) -> bool:
    return urlsplit(given).scheme in PACKAGES and "://" in given


def validate_url(url: str) -> str:
    """The URL of a bucket and a prefix, without a trailing slash.

    Raises:
        InvalidInput: the URL does not have exactly the names of a bucket and a prefix.
    """
    parts = urlsplit(url)
    if not parts.netloc or parts.username or parts.query or parts.fragment or ".." in parts.path.split("/"):
        remedy = f"write {parts.scheme}://BUCKET/PREFIX; credentials come from the environment"
        shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        raise InvalidInput("--home", shown, "must consist of a bucket and a prefix", remedy)
    return url.rstrip("/")


@dataclass(frozen=True)
class Bucket:
    """The objects under ``url`` (``scheme://bucket/prefix``), with names relative to it.

    Requests are retried for a while. If a request still fails, the method raises ``OSError`` with ``EIO``.
    """

    url: str

    @classmethod
    def open(cls, url: str) -> Bucket:
        """Open a bucket after checking that it exists and is readable.

        Raises:
            InvalidInput: it does not exist or is not readable, its package is missing, or see ``validate_url``.
        """
        parts = urlsplit(url := validate_url(url))
        if find_spec(PACKAGES[parts.scheme]) is None:
            remedy = "run pip install 'oec-sensitivity[buckets]' on every node"
            raise InvalidInput("--home", url, f"requires the package {PACKAGES[parts.scheme]}", remedy)
        bucket, store = cls(url), _filesystem(parts.scheme)
        try:
            try:
                store.ls(bucket.url.partition("://")[2], detail=False, timeout=OPEN_TIMEOUT_S)
            except FileNotFoundError:  # no object has this prefix yet
                store.ls(parts.netloc, detail=False, timeout=OPEN_TIMEOUT_S)
        except FileNotFoundError as error:
            raise InvalidInput("--home", url, "is in a bucket that does not exist", "create the bucket") from error
        except TimeoutError as error:
            remedy = "check its address and the network"
            raise InvalidInput("--home", url, f"does not respond within {OPEN_TIMEOUT_S:g} s", remedy) from error
        except Exception as error:  # any error of the store's client
            remedy = "check the address and credentials in the environment (AWS_*, GOOGLE_*)"
            raise InvalidInput("--home", url, f"cannot be read ({_one_line(error)})", remedy) from error
        return bucket

    def __truediv__(self, name: str) -> Bucket:
        return Bucket(f"{self.url}/{name}")

    def create(self, name: str, content: bytes) -> bool:
        """Create the object if it does not exist.

        Returns:
            Whether it has ``content``: created by this call, or by an earlier try whose response was lost.
        """
        try:
            self._request(lambda store, root: store.pipe_file(f"{root}/{name}", content, mode="create"))
        except FileExistsError:
            return self.read(name) == content
        return True

    def write(self, name: str, content: bytes) -> None:
        self._request(lambda store, root: store.pipe_file(f"{root}/{name}", content))

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if it does not exist."""
        try:
            content: bytes = self._request(lambda store, root: store.cat_file(f"{root}/{name}"))
        except FileNotFoundError:
            return None
        return content

    def read_all(self, names: Iterable[str]) -> list[bytes | None]:
        return map_concurrently(self.read, names)

    def upload(self, name: str, path: Path) -> None:
        self._request(lambda store, root: store.put_file(str(path), f"{root}/{name}"))

    def download(self, name: str, path: Path) -> None:
        """Replace ``path`` with an object, atomically.

        Raises:
            FileNotFoundError: the object does not exist.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            self._request(lambda store, root: store.get_file(f"{root}/{name}", file.name))

    def stamp(self, name: str) -> Stamp | None:
        """The stamp of an object; None if it does not exist."""
        try:
            return _stamp(self._request(lambda store, root: store.info(f"{root}/{name}")))
        except FileNotFoundError:
            return None

    def names(self) -> dict[str, Stamp]:
        """The stamps of all objects, by name."""
        root, objects = self._request(lambda store, root: (root, store.find(root, detail=True)))
        return {key.removeprefix(f"{root}/"): _stamp(info) for key, info in sorted(objects.items()) if key != root}

    def folders(self) -> list[str]:
        """The first components of all names with a slash."""
        try:
            found = self._request(lambda store, root: store.ls(root, detail=True))
        except FileNotFoundError:
            return []
        return sorted(one["name"].rstrip("/").rpartition("/")[2] for one in found if one["type"] == "directory")

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that do not exist are ignored."""

        def remove_one(name: str) -> None:
            try:
                self._request(lambda store, root: store.rm_file(f"{root}/{name}"))
            except FileNotFoundError:
                logger.debug("%s/%s does not exist", self.url, name)

        map_concurrently(remove_one, names)

    def _request(self, call: Callable[[Any, str], T]) -> T:
        """Make a request, with retries after each of ``BACKOFF_S``."""
        scheme, _, root = self.url.partition("://")
        for pause in (*BACKOFF_S, None):
            try:
                return call(_filesystem(scheme), root)
            except EXPECTED_ERRORS:
                raise
            except Exception as error:  # any error of the store's client
                if pause is None or isinstance(error, PermissionError):
                    raise OSError(errno.EIO, f"{self.url}: {_one_line(error)}") from error
                logger.warning("%s: %s", self.url, _one_line(error))
                time.sleep(pause)
        raise AssertionError  # the last pause is None


@dataclass
class Mirror:
    """A local folder with its copy in a bucket. Only one process writes to both."""

    folder: Path
    bucket: Bucket
    archive: str | None = None
    """A subfolder whose files are written once and too large to keep locally as well: ``push`` moves them to the
    bucket, and ``pull`` does not download them."""
    archived: set[str] = field(default_factory=set)
    """Names of the archived files in the bucket."""
    _uploaded: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and modification time of the local files whose copies in the bucket are up to date."""

    def pull(self) -> None:
        """Make the folder equal to the bucket. Files that exist only locally were left by a killed process and go."""
        names = self.bucket.names()
        for path in self._files():
            path.unlink()
        self.archived = {name for name in names if self._is_archived(name)}
        names = {name: stamp for name, stamp in names.items() if name not in self.archived}
        map_concurrently(lambda name: self.bucket.download(name, self._path(name)), names)
        self._uploaded = self._local_files()

    def push(self) -> None:
        """Make the bucket equal to the folder. Files are uploaded in the order in which they were written, so that a
        file that validates another follows it. Removed files are removed last."""
        local = self._local_files()
        for name in sorted(local, key=lambda name: local[name][1]):
            if self._uploaded.get(name) == local[name]:
                continue
            try:
                self.bucket.upload(name, self._path(name))
            except FileNotFoundError:  # a command has just removed it
                if self._path(name).exists():
                    raise
                local.pop(name)
                continue
            if self._is_archived(name):
                self._path(name).unlink()
                self.archived.add(name)
            else:
                self._uploaded[name] = local[name]
        removed = set(self._uploaded) - set(local)
        self.bucket.remove(removed)
        for name in removed:
            del self._uploaded[name]

    def remove_archived(self, predicate: Callable[[str], bool]) -> None:
        """Remove archived files whose file name satisfies ``predicate``."""
        removed = {name for name in self.archived if predicate(name.rpartition("/")[2])}
        self.bucket.remove(removed)
        self.archived -= removed

    def _is_archived(self, name: str) -> bool:
        return self.archive is not None and name.startswith(f"{self.archive}/")

    def remove_local(self) -> None:
        """Remove the local folder; the bucket keeps its copy."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._uploaded.clear()

    def fetch(self, last: str) -> bool:
        """Download a folder that never changes once it is complete, unless it exists locally.

        Args:
            last: the file that is written last; without it the folder is incomplete.

        Returns:
            Whether the folder exists locally now.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(f".{self.folder.name}.lock")):  # excludes other workers on this machine
            if self.folder.is_dir():
                return True
            if last not in (names := self.bucket.names()):
                return False
            temporary = self.folder.with_name(f".{self.folder.name}-{uuid.uuid4().hex}")
            download = Mirror(temporary, self.bucket)
            try:
                map_concurrently(lambda name: self.bucket.download(name, download._path(name)), names)
                temporary.rename(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return True

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InvalidInput("--home", self.bucket.url, f"has an object outside of its folder, {name!r}", "remove it")
        return path

    def _files(self) -> list[Path]:
        """All files, while a command may remove some, and folders of them."""
        found = (Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names)
        return [path for path in found if path.is_file()]

    def _local_files(self) -> dict[str, tuple[int, int]]:
        """Size and modification time of complete files of this folder, without those that were set aside. Names that
        begin with a dot or end in ``-tmp`` are incomplete."""
        found, root = {}, self.folder.resolve()
        for path in self._files():
            name = path.relative_to(self.folder)
            incomplete = name.name.startswith(".") or name.name.endswith("-tmp")
            if incomplete or name.parts[0].startswith(SET_ASIDE) or not path.resolve().is_relative_to(root):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # a command has just removed it
                continue
            found[name.as_posix()] = (status.st_size, status.st_mtime_ns)
        return found


def refresh(path: Path, bucket: Bucket, name: str) -> None:
    """Download an object to ``path`` if it exists and differs from the file there."""
    stamp = bucket.stamp(name)
    if stamp is None:
        return
    status = path.stat() if path.is_file() else None
    if status is None or (status.st_size, status.st_mtime) != stamp:
        bucket.download(name, path)
        os.utime(path, (stamp.modified, stamp.modified))


def map_concurrently(do: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """Call ``do`` on each name, ``MAX_REQUESTS`` at a time; raises the first error."""
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        return list(pool.map(do, names))


@lru_cache
def _filesystem(scheme: str) -> Any:
    import fsspec  # takes a tenth of a second, and homes in folders do not need it

    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # would query the type of the bucket, and warn
    logging.getLogger(PACKAGES[scheme]).setLevel(logging.CRITICAL)  # logs tracebacks of errors that it also raises
    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **OPTIONS[scheme])


def _stamp(info: dict[str, Any]) -> Stamp:
    modified = info.get("LastModified") or info.get("mtime")
    return Stamp(int(info["size"]), modified.timestamp() if modified else 0.0)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

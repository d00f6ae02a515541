"""Folders that last in a bucket: objects of S3 (or what speaks its protocol) and Google Storage, through fsspec.

Whoever works on a file does so in a folder of the machine; an object is that file as a whole, and takes the place of
the one before at once. What an object store has in place of a lock is an object that is made only if there is none.
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
from trainers.storage.files import replacing

T = TypeVar("T")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""What fsspec needs for each scheme; both are in the extra ``buckets``."""
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60}},
    "gs": {"requests_timeout": 60},
}
ANSWER_S = 15.0
"""How long a store may take to answer at first."""
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Pauses before a request is made again, on top of those that the client itself makes."""
MAX_REQUESTS = 16
"""Concurrent requests."""
ANSWERS = (FileNotFoundError, FileExistsError)
"""Of a store that does what it is asked."""

logger = logging.getLogger(__name__)


class Stamp(NamedTuple):
    """What tells two contents of an object apart."""

    bytes: int
    modified: float
    """Seconds since 1970, by the store's clock."""


def is_bucket(given: str) -> bool:
    return urlsplit(given).scheme in PACKAGES and "://" in given


def checked(url: str) -> str:
    """The URL of a bucket and a prefix, without a slash at its end.

    Raises:
        InvalidInput: a URL that holds more than the names of a bucket and a prefix, or less.
    """
    parts = urlsplit(url)
    if not parts.netloc or parts.username or parts.query or parts.fragment or ".." in parts.path.split("/"):
        remedy = f"write {parts.scheme}://BUCKET/PREFIX; credentials come from the environment"
        shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        raise InvalidInput("--home", shown, "names no bucket and prefix alone", remedy)
    return url.rstrip("/")


@dataclass(frozen=True)
class Bucket:
    """The objects under ``url``, ``scheme://bucket/prefix``; their names are relative to it.

    Every request is made again for a while before it fails.

    Every method raises ``OSError`` with ``EIO`` for a store that does not do what it is asked.
    """

    url: str

    @classmethod
    def open(cls, url: str) -> Bucket:
        """See that it is there and lets us in, at once.

        Raises:
            InvalidInput: it is not or does not, its package is missing, or the URL holds more than names.
        """
        parts = urlsplit(url := checked(url))
        if find_spec(PACKAGES[parts.scheme]) is None:
            remedy = "pip install 'oec-sensitivity[buckets]', on every node"
            raise InvalidInput("--home", url, f"needs the package {PACKAGES[parts.scheme]}", remedy)
        bucket, store = cls(url), _filesystem(parts.scheme)
        try:
            try:
                store.ls(bucket.url.partition("://")[2], detail=False, timeout=ANSWER_S)
            except FileNotFoundError:  # nothing has this prefix yet
                store.ls(parts.netloc, detail=False, timeout=ANSWER_S)
        except FileNotFoundError as error:
            raise InvalidInput("--home", url, "is in a bucket that does not exist", "make the bucket") from error
        except TimeoutError as error:
            remedy = "see that its address is right, and that the network lets it through"
            raise InvalidInput("--home", url, f"does not answer in {ANSWER_S:g} s", remedy) from error
        except Exception as error:  # whatever the store's client raises
            remedy = "see that its address and credentials are in this environment (AWS_*, GOOGLE_*)"
            raise InvalidInput("--home", url, f"can not be read ({_said(error)})", remedy) from error
        return bucket

    def __truediv__(self, name: str) -> Bucket:
        return Bucket(f"{self.url}/{name}")

    def create(self, name: str, content: bytes) -> bool:
        """Make the object unless there is one; whether it holds ``content``, made by this call, or by one like it whose
        answer was lost."""
        try:
            self._ask(lambda store, root: store.pipe_file(f"{root}/{name}", content, mode="create"))
        except FileExistsError:
            return self.read(name) == content
        return True

    def write(self, name: str, content: bytes) -> None:
        self._ask(lambda store, root: store.pipe_file(f"{root}/{name}", content))

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none."""
        try:
            content: bytes = self._ask(lambda store, root: store.cat_file(f"{root}/{name}"))
        except FileNotFoundError:
            return None
        return content

    def read_all(self, names: Iterable[str]) -> list[bytes | None]:
        return map_concurrently(self.read, names)

    def upload(self, name: str, path: Path) -> None:
        self._ask(lambda store, root: store.put_file(str(path), f"{root}/{name}"))

    def download(self, name: str, path: Path) -> None:
        """Put an object in the place of ``path``, whole.

        Raises:
            FileNotFoundError: there is no such object.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            self._ask(lambda store, root: store.get_file(f"{root}/{name}", file.name))

    def stamp(self, name: str) -> Stamp | None:
        """The stamp of an object; None if there is none."""
        try:
            return _stamp(self._ask(lambda store, root: store.info(f"{root}/{name}")))
        except FileNotFoundError:
            return None

    def names(self) -> dict[str, Stamp]:
        """Every object, by name."""
        found = self._ask(lambda store, root: (root, store.find(root, detail=True)))
        root, objects = found
        return {key.removeprefix(f"{root}/"): _stamp(info) for key, info in sorted(objects.items()) if key != root}

    def folders(self) -> list[str]:
        """What stands before the first slash of its objects' names."""
        try:
            found = self._ask(lambda store, root: store.ls(root, detail=True))
        except FileNotFoundError:
            return []
        return sorted(one["name"].rstrip("/").rpartition("/")[2] for one in found if one["type"] == "directory")

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, as far as there are any of these names."""

        def remove_one(name: str) -> None:
            try:
                self._ask(lambda store, root: store.rm_file(f"{root}/{name}"))
            except FileNotFoundError:
                logger.debug("%s/%s is gone already", self.url, name)

        map_concurrently(remove_one, names)

    def _ask(self, request: Callable[[Any, str], T]) -> T:
        """Make a request of the store until it answers, ``BACKOFF_S`` long."""
        scheme, _, root = self.url.partition("://")
        for pause in (*BACKOFF_S, None):
            try:
                return request(_filesystem(scheme), root)
            except ANSWERS:
                raise
            except Exception as error:  # whatever the store's client raises
                if pause is None or isinstance(error, PermissionError):
                    raise OSError(errno.EIO, f"{self.url}: {_said(error)}") from error
                logger.warning("%s: %s", self.url, _said(error))
                time.sleep(pause)
        raise AssertionError  # the last pause is None


@dataclass
class Mirror:
    """A folder of this machine, and its form in a bucket. One process writes to both."""

    folder: Path
    bucket: Bucket
    archive: str | None = None
    """A folder within it whose files are written once, and too large to hold here as well: they are moved to the bucket
    and do not come back."""
    archived: set[str] = field(default_factory=set)
    """Names of those that are there."""
    _there: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and time of change of the files that are in the bucket as they are here."""

    def pull(self) -> None:
        """Make the folder what the bucket has; what is only here goes, as a killed process has left it."""
        names = self.bucket.names()
        for path in self._files():
            path.unlink()
        self.archived = {name for name in names if self._is_archived(name)}
        names = {name: stamp for name, stamp in names.items() if name not in self.archived}
        map_concurrently(lambda name: self.bucket.download(name, self._path(name)), names)
        self._there = self._here()

    def push(self) -> None:
        """Make the bucket what the folder has, in the order in which its files were written: one that makes another
        valid comes after it, and what is no longer here goes last."""
        here = self._here()
        for name in sorted(here, key=lambda name: here[name][1]):
            if self._there.get(name) == here[name]:
                continue
            self.bucket.upload(name, self._path(name))
            if self._is_archived(name):
                self._path(name).unlink()
                self.archived.add(name)
            else:
                self._there[name] = here[name]
        gone = set(self._there) - set(here)
        self.bucket.remove(gone)
        for name in gone:
            del self._there[name]

    def remove_archived(self, which: Callable[[str], bool]) -> None:
        """Remove those files of the archive from the bucket that ``which`` says, of the name of a file."""
        gone = {name for name in self.archived if which(name.rpartition("/")[2])}
        self.bucket.remove(gone)
        self.archived -= gone

    def _is_archived(self, name: str) -> bool:
        return self.archive is not None and name.startswith(f"{self.archive}/")

    def drop(self) -> None:
        """Remove the folder from this machine; the bucket has it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._there.clear()

    def fetch(self, last: str) -> bool:
        """Bring a folder that is written once, unless it is here; whether it is.

        Args:
            last: the file that was written last, without which it is not whole.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(f".{self.folder.name}.lock")):  # other workers of this machine
            if self.folder.is_dir():
                return True
            if last not in (names := self.bucket.names()):
                return False
            building = self.folder.with_name(f".{self.folder.name}-{uuid.uuid4().hex}")
            coming = Mirror(building, self.bucket)
            try:
                map_concurrently(lambda name: self.bucket.download(name, coming._path(name)), names)
                building.rename(self.folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        return True

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InvalidInput("--home", self.bucket.url, f"has an object that leaves it, {name!r}", "remove it")
        return path

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def _here(self) -> dict[str, tuple[int, int]]:
        """Whole files; names that begin with a dot or end in ``-tmp`` are of those that are being written."""
        here = {}
        for path in self._files():
            if not path.name.startswith(".") and not path.name.endswith("-tmp"):
                status = path.stat()
                here[path.relative_to(self.folder).as_posix()] = (status.st_size, status.st_mtime_ns)
        return here


def refresh(path: Path, bucket: Bucket, name: str) -> None:
    """Make a file what an object is; nothing where there is none, or it is that already."""
    stamp = bucket.stamp(name)
    if stamp is None:
        return
    status = path.stat() if path.is_file() else None
    if status is None or (status.st_size, status.st_mtime) != stamp:
        bucket.download(name, path)
        os.utime(path, (stamp.modified, stamp.modified))


def map_concurrently(do: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """``do`` of each name, ``MAX_REQUESTS`` at a time; raises the first error."""
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        return list(pool.map(do, names))


@lru_cache
def _filesystem(scheme: str) -> Any:
    import fsspec  # a tenth of a second, and not needed where homes are folders

    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks what kind a bucket is, and warns of it
    logging.getLogger(PACKAGES[scheme]).setLevel(logging.CRITICAL)  # tells in tracebacks what is raised anyway
    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **OPTIONS[scheme])


def _stamp(info: dict[str, Any]) -> Stamp:
    modified = info.get("LastModified") or info.get("mtime")
    return Stamp(int(info["size"]), modified.timestamp() if modified else 0.0)


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

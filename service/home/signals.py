"""Short named texts that all processes of a home can read and write, in a folder or in a bucket."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from service.home.layout import Home
from trainers.storage.bucket import Bucket
from trainers.storage.files import write_atomically


@dataclass(frozen=True)
class FolderSignals:
    folder: Path
    max_age_s: float = 0.5

    def check(self) -> None: ...

    def write(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / name, text)

    def read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # it may not exist, or another process may write a new signal


@dataclass(frozen=True)
class BucketSignals:
    bucket: Bucket
    max_age_s: float = 5.0
    """A request costs money, and there may be hundreds of readers."""
    _last: dict[str, tuple[float, str | None]] = field(default_factory=dict, compare=False)
    """The time and text of the last reading; one name suffices, because a reader polls one name at a time."""

    def check(self) -> None:
        Bucket.open(self.bucket.url)

    def write(self, name: str, text: str) -> None:
        self.bucket.write(name, text.encode())

    def read(self, name: str) -> str | None:
        at, text = self._last.get(name, (-self.max_age_s, None))
        if time.monotonic() - at >= self.max_age_s:
            content = self.bucket.read(name)
            text = None if content is None else content.decode(errors="replace")
            self._last.clear()
            self._last[name] = (time.monotonic(), text)
        return text

    def clear(self) -> None:
        self.bucket.remove(self.bucket.names())


SignalStore = FolderSignals | BucketSignals
"""A value that is read may be up to ``max_age_s`` old. ``check`` raises InvalidInput, without retries, if the store is
not accessible. A pickled store refers to the same place."""


def signals(home: Home, folder: str) -> SignalStore:
    """The signals below a folder of the home."""
    return BucketSignals(home.bucket / folder) if home.bucket else FolderSignals(home.path / folder)

"""Short texts by name, for whoever sees the home: as files of a folder, or as objects of a bucket."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trainers.storage.bucket import Bucket
from trainers.storage.files import write_atomically


class Texts(Protocol):
    """Each read may be as old as ``every_s`` seconds. They pickle as the place that they name."""

    @property
    def every_s(self) -> float: ...

    def check(self) -> None:
        """Raises InvalidInput, at once, where the place is not to be had from here."""

    def write(self, name: str, text: str) -> None: ...

    def read(self, name: str) -> str | None:
        """None if there is none of this name."""

    def clear(self) -> None:
        """Remove them all."""


@dataclass(frozen=True)
class InFolder:
    folder: Path
    every_s: float = 0.5

    def check(self) -> None: ...

    def write(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / name, text)

    def read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or somebody has written anew
            self.folder.rmdir()


@dataclass(frozen=True)
class InBucket:
    bucket: Bucket
    every_s: float = 5.0
    """A request costs a little, and there may be hundreds of readers."""
    _last: dict[str, tuple[float, str | None]] = field(default_factory=dict, compare=False)
    """When a name was read, and what there was; of one name alone, as readers care for one after the other."""

    def check(self) -> None:
        Bucket.open(self.bucket.url)

    def write(self, name: str, text: str) -> None:
        self.bucket.write(name, text.encode())

    def read(self, name: str) -> str | None:
        at, text = self._last.get(name, (-self.every_s, None))
        if time.monotonic() - at >= self.every_s:
            content = self.bucket.read(name)
            text = None if content is None else content.decode(errors="replace")
            self._last.clear()
            self._last[name] = (time.monotonic(), text)
        return text

    def clear(self) -> None:
        self.bucket.remove(self.bucket.names())

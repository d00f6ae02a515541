"""A ledger in a bucket: its lines in objects that are made once, by one writer at a time.

::

    ledgers/<study>/lines/0000000041     lines from number 41 on, as in ``ledger.jsonl``
    ledgers/<study>/writers/000003       who wrote third: replaced every ``BEAT_S``, and at the end

Objects can be neither appended to nor locked, but made only if there is none of that name. So the next lines are
made under the number of the first of them, which two writers can not both do; and whoever wants to write makes the
next writer's object, which the one before looks for whenever it writes.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from typing import Literal

from search_spaces.errors import InvalidInput
from service.home.writer import BEAT_S, LOST_S, LedgerLocked, Writer
from trainers.storage.bucket import Bucket

LOOK_S = 0.5
BLOCK = 256
"""Objects of lines that become one: a long study's ledger is read by tens of requests, not thousands."""
TRIES = 5
"""Reading is tried anew when lines were put together meanwhile."""

logger = logging.getLogger(__name__)


class BucketLedger:
    """The lines of one study. ``OSError`` comes from a bucket that does not answer for long."""

    def __init__(self, home: Bucket, study: str) -> None:
        self._home, self._study = home, study
        self._lines, self._writers = (home / f"ledgers/{study}/{kind}" for kind in ("lines", "writers"))
        self._number = 0
        """Of this process among the writers; 0 while it is none."""
        self._me = Writer.this()
        self._block: list[str] = []
        """Objects of lines that were made since the last that were put together, and their lines:"""
        self._content = b""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Become the writer.

        Raises:
            LedgerLocked: somebody else is.
            InvalidInput: the store makes one object twice, so that nothing here would hold.
        """
        before = self._last()
        if before and not before[1].ended and self._lives(*before):
            raise self._locked()
        number = before[0] + 1 if before else 1
        if not self._writers.create(_writer(number), self._me.model_dump_json().encode()):
            raise self._locked()
        if self._writers.create(_writer(number), b"{}"):
            remedy = "use one that honours If-None-Match (S3, MinIO, R2) or ifGenerationMatch (Google Storage)"
            raise InvalidInput("--home", self._home.url, "is on a store that makes one object twice", remedy)
        self._number = number
        self._thread = threading.Thread(target=self._show, name="ledger-writer", daemon=True)
        self._thread.start()

    def append(self, first: int, content: bytes) -> None:
        """Make the next lines, durably.

        Args:
            first: the number of the first of them.

        Raises:
            LedgerLocked: another writer has taken over, as this one was not seen for ``LOST_S``.
        """
        name = _lines(first)
        if self._writers.stamp(_writer(self._number + 1)) or not self._lines.create(name, content):
            raise self._locked()
        self._block.append(name)
        self._content += content
        if len(self._block) >= BLOCK:
            self._put_together()

    def content(self, before: bytes = b"") -> bytes:
        """Every line.

        Args:
            before: what it was when it was read last, so that only what has come since is asked for.
        """
        for _ in range(TRIES):
            names = list(self._lines.names())
            known = before.count(b"\n")
            names = names[max(0, bisect_right(names, _lines(known)) - 1) :]  # the last that is known has been added to,
            parts = self._lines.read_all(names)  # where lines were put together
            if None not in parts:
                break
        else:
            problem = "changes while it is read"
            raise InvalidInput("ledger", self._lines.url, problem, "try again, or see what removes its objects")
        first = int(names[0]) if names else 1
        whole = before.splitlines(keepends=True)[: first - 1]
        for name, part in zip(names, parts, strict=True):
            lines = (part or b"").splitlines(keepends=True)
            whole += lines[max(0, len(whole) + 1 - int(name)) :]  # some are here twice while they are put together
        content = b"".join(whole)
        return content if content.startswith(before) else self.content()  # or it has been begun anew

    def writer(self) -> Writer | None:
        """Who wrote last, or does; None if nobody ever did."""
        last = self._last()
        return last[1] if last else None

    def forget(self) -> None:
        """Remove every line."""
        self._lines.remove(self._lines.names())

    def close(self) -> None:
        """Let the next writer in at once."""
        if self._thread:
            self._over.set()
            self._thread.join()
            self._thread = None
            try:
                self._put_together()
                self._beat(ended=True)
            except OSError as error:  # every line is there; the next writer waits until this one counts as lost
                logger.warning("the ledger's writer can not say that it ends: %s", error)

    def _put_together(self) -> None:
        """First the object that holds all lines of the block, in the place of its first, then away with the others."""
        if len(self._block) > 1:
            self._lines.write(self._block[0], self._content)
            self._lines.remove(self._block[1:])
        self._block, self._content = [], b""

    def _last(self) -> tuple[int, Writer] | None:
        names = sorted(self._writers.names())
        content = self._writers.read(names[-1]) if names else None
        if content is None:
            return None
        try:
            return int(names[-1]), Writer.model_validate_json(content)
        except ValueError as error:
            at = f"{self._writers.url}/{names[-1]}"
            raise InvalidInput("ledger", at, "is damaged", "remove it if nobody runs the study") from error

    def _lives(self, number: int, writer: Writer) -> bool:
        """Whether a writer that has not ended shows itself, or another one does, within ``LOST_S``."""
        if writer.is_alive is False:
            return False
        deadline = time.monotonic() + LOST_S
        while time.monotonic() < deadline:
            time.sleep(LOOK_S)
            if (last := self._last()) and (last[0] != number or last[1].beat != writer.beat or last[1].ended):
                return not last[1].ended or last[0] != number
        return False

    def _show(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._beat()
            except OSError as error:  # the next line that is to be written meets it too
                logger.warning("the ledger's writer can not show itself: %s", error)

    def _beat(self, ended: Literal[True] | None = None) -> None:
        update = {"beat": self._me.beat + 1, "at": time.time(), "ended": bool(ended)}
        self._me = self._me.model_copy(update=update)
        self._writers.write(_writer(self._number), self._me.model_dump_json().encode())

    def _locked(self) -> LedgerLocked:
        return LedgerLocked.by(self.writer() or "unknown", self._study)


def _lines(first: int) -> str:
    return f"{first:010d}"


def _writer(number: int) -> str:
    return f"{number:06d}"

"""A ledger in a bucket, written by one process at a time.

::

    ledgers/<study>/lines/0000000041     the lines from number 41 on, as in ``ledger.jsonl``
    ledgers/<study>/writers/000003       the record of the third writer, renewed every ``BEAT_S`` and at the end

An object store can neither append nor lock, but it can create an object only if it does not exist. New lines are
created under the number of the first of them, which only one of two writers can do. To become the writer, a process
creates the next writer's record; the previous writer checks for that record whenever it writes.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right

from search_spaces.errors import InvalidInput
from service.home.writer import BEAT_S, LOST_S, LedgerLocked, Writer
from trainers.storage.bucket import Bucket

POLL_S = 0.5
MERGE_OBJECTS = 256
"""This many objects of lines are merged into one, so that a long ledger is read in tens of requests, not thousands."""
_lines_name, _writer_name = "{:010d}".format, "{:06d}".format

logger = logging.getLogger(__name__)


class BucketLedger:
    """The ledger of one study. Every method raises ``OSError`` if the bucket does not respond for a while."""

    def __init__(self, home: Bucket, study: str) -> None:
        self._home, self._study = home, study
        self._lines, self._writers = (home / f"ledgers/{study}/{kind}" for kind in ("lines", "writers"))
        self._number = 0
        """The number of this writer; 0 while this process is not the writer."""
        self._record = Writer.this()
        self._unmerged: list[str] = []
        """Names of the objects of lines that have not been merged yet."""
        self._unmerged_content = b""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Become the writer.

        Raises:
            LedgerLocked: another process is the writer.
            InvalidInput: the store ignores the condition that an object must not exist, on which this class relies.
        """
        last, writer = self._last_writer()
        if writer and not writer.ended and self._is_alive(last, writer):
            raise self._locked()
        number = last + 1
        if not self._writers.create(_writer_name(number), self._record.model_dump_json().encode()):
            raise self._locked()
        if self._writers.create(_writer_name(number), b"{}"):
            remedy = "use one that honors If-None-Match (S3, MinIO, R2) or ifGenerationMatch (Google Cloud Storage)"
            raise InvalidInput("--home", self._home.url, "is on a store without conditional writes", remedy)
        self._number = number
        self._thread = threading.Thread(target=self._beat_until_closed, name="ledger-writer", daemon=True)
        self._thread.start()

    def append(self, first: int, content: bytes) -> None:
        """Write the next lines durably.

        Args:
            first: the number of the first line.

        Raises:
            LedgerLocked: another writer took over, because this one did not renew its record for ``LOST_S``.
        """
        name = _lines_name(first)
        if self._writers.stamp(_writer_name(self._number + 1)) or not self._lines.create(name, content):
            raise self._locked()
        self._unmerged.append(name)
        self._unmerged_content += content
        if len(self._unmerged) >= MERGE_OBJECTS:
            self._merge()

    def content(self, before: bytes = b"") -> bytes:
        """Every line.

        Args:
            before: the content at the last reading, so that only newer lines are requested.
        """
        for _ in range(5):  # reading is repeated if objects were merged in the meantime
            names = list(self._lines.names())
            known = before.count(b"\n")
            # The last known object may have been extended by a merge.
            names = names[max(0, bisect_right(names, _lines_name(known)) - 1) :]
            parts = self._lines.read_all(names)
            if None not in parts:
                break
        else:
            problem = "kept changing while it was read"
            raise InvalidInput("ledger", self._lines.url, problem, "try again, or find out what removes its objects")
        first = int(names[0]) if names else 1
        whole = before.splitlines(keepends=True)[: first - 1]
        for name, part in zip(names, parts, strict=True):
            lines = (part or b"").splitlines(keepends=True)
            whole += lines[max(0, len(whole) + 1 - int(name)) :]  # during a merge some lines are in two objects
        content = b"".join(whole)
        return content if content.startswith(before) else self.content()  # otherwise the ledger was cleared

    def writer(self) -> Writer | None:
        """The current or last writer; None if there was none."""
        return self._last_writer()[1]

    def clear(self) -> None:
        """Remove every line."""
        self._lines.remove(self._lines.names())

    def close(self) -> None:
        """Stop being the writer; the next one does not have to wait."""
        if self._thread:
            self._closing.set()
            self._thread.join()
            self._thread = None
            try:
                self._merge()
                self._beat(ended=True)
            except OSError as error:  # all lines are written; the next writer waits until this one counts as lost
                logger.warning("the writer of the ledger could not release it: %s", error)

    def _merge(self) -> None:
        """Replace the first unmerged object by one with the lines of all, then remove the others."""
        if len(self._unmerged) > 1:
            self._lines.write(self._unmerged[0], self._unmerged_content)
            self._lines.remove(self._unmerged[1:])
        self._unmerged, self._unmerged_content = [], b""

    def _last_writer(self) -> tuple[int, Writer | None]:
        names = sorted(self._writers.names())
        content = self._writers.read(names[-1]) if names else None
        if content is None:
            return 0, None
        try:
            return int(names[-1]), Writer.model_validate_json(content)
        except ValueError as error:
            at = f"{self._writers.url}/{names[-1]}"
            raise InvalidInput("ledger", at, "is damaged", "remove it if the study is not running") from error

    def _is_alive(self, number: int, writer: Writer) -> bool:
        """Whether a writer that has not ended, or a newer one, renews its record within ``LOST_S``."""
        if writer.is_alive is False:
            return False
        deadline = time.monotonic() + LOST_S
        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            last, found = self._last_writer()
            if found and (last != number or found.beat != writer.beat or found.ended):
                return not found.ended or last != number
        return False

    def _beat_until_closed(self) -> None:
        while not self._closing.wait(BEAT_S):
            try:
                self._beat()
            except OSError as error:  # writing the next line raises it, too
                logger.warning("the writer of the ledger could not renew its record: %s", error)

    def _beat(self, *, ended: bool = False) -> None:
        update = {"beat": self._record.beat + 1, "at": time.time(), "ended": ended}
        self._record = self._record.model_copy(update=update)
        self._writers.write(_writer_name(self._number), self._record.model_dump_json().encode())

    def _locked(self) -> LedgerLocked:
        return LedgerLocked.by(self.writer() or "unknown", self._study)

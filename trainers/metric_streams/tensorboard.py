"""TensorBoard event files: records of a length, two checksums and a protocol buffer, whose schema tensorboardX has.

tensorboardX comes with Ray Tune. ``tensorboard`` itself has a reader as well, but few installations of a cluster do.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from search_spaces.metrics_spec import MetricsSpec
from trainers.metric_streams.base import Record, Tail, files, group_by_step, keys_seen, unescape

EVENTS = "*tfevents*"
FILES = (EVENTS, "hparams.yaml")
"""Lightning writes its arguments next to the events."""
HEADER, FOOTER = 12, 4
"""Bytes before and after an event: its length with a checksum, and the checksum of its content."""
MAX_EVENT = 1 << 28
"""A longer event is taken for damage; the rest of its file is not read."""
VALUES = {1: ("float_val", "f"), 2: ("double_val", "d"), 3: ("int_val", "i"), 9: ("int64_val", "q")}
"""Field and ``struct`` code of a scalar tensor, by its data type in TensorFlow's numbering."""


class TensorBoard:
    """Scalars of every event file in a folder, and in the folders in it."""

    def __init__(self, spec: MetricsSpec, path: str) -> None:
        self._folder = path
        self._tails: dict[str, Tail] = {}
        self._rest: dict[str, bytes] = defaultdict(bytes)
        self._tags: set[str] = set()

    def own_files(self) -> set[Path]:
        return {file for name in FILES for file in files(f"{self._folder}/**/{name}")}

    def read(self, *, ended: bool = False) -> list[Record]:
        found = sorted(str(path) for path in files(f"{self._folder}/**/{EVENTS}"))
        return group_by_step(point for path in found for point in self._points(path))

    def _points(self, path: str) -> Iterator[tuple[str, int, float]]:
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

        tail = self._tails.setdefault(path, Tail(path))
        data = tail.read()
        self._rest[path] = data if tail.restarted else self._rest[path] + data
        while content := self._next(path):
            event = Event.FromString(content)
            for item in event.summary.value:
                if (number := scalar(item)) is not None:
                    self._tags.add(item.tag)
                    yield item.tag, event.step, number

    def _next(self, path: str) -> bytes | None:
        """The content of the next complete event, if there is one."""
        data = self._rest[path]
        if len(data) < HEADER:
            return None
        (length,) = struct.unpack_from("<Q", data)
        if length > MAX_EVENT or len(data) < HEADER + length + FOOTER:
            return None
        self._rest[path] = data[HEADER + length + FOOTER :]
        return data[HEADER : HEADER + length]

    def seen(self) -> str:
        if not self._tails:
            return f"{unescape(self._folder)} has no event file"
        return f"{unescape(self._folder)} has event files; {keys_seen(self._tags)}"


def scalar(value: Any) -> float | None:
    """A scalar of a summary, as older and newer writers store it."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or value.tensor.dtype not in VALUES:
        return None
    name, code = VALUES[value.tensor.dtype]
    stored = getattr(value.tensor, name)
    if len(stored) == 1:
        return float(stored[0])
    content = value.tensor.tensor_content
    return float(struct.unpack(f"<{code}", content)[0]) if len(content) == struct.calcsize(code) else None

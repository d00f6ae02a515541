"""Where a command's metrics come from, one reader per source, and how their records become evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from search_spaces.metrics_spec import MetricsSpec
from trainers.metric_streams.base import Record, Stream
from trainers.metric_streams.mlflow_runs import MlflowRuns
from trainers.metric_streams.tensorboard import TensorBoard
from trainers.metric_streams.text import Csv, JsonLines, Stdout

STREAMS: dict[str, type[Stream]] = {
    "file": JsonLines,
    "csv": Csv,
    "stdout": Stdout,
    "tensorboard": TensorBoard,
    "mlflow": MlflowRuns,
}
"""The reader of each source in ``search_spaces.trainer.SOURCES``."""


class Evaluations:
    """Makes evaluations of records. A record without ``val_loss`` only updates the values that the next one carries,
    so that a command may log its training loss at every step."""

    def __init__(self, spec: MetricsSpec, start: int = 0) -> None:
        """
        Args:
            start: the number of the first evaluation, where there is no step.
        """
        self._spec = spec
        self._carried: dict[str, float] = {}
        self._step: int | None = None
        self._count = start

    def read(self, records: list[Record]) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields ``(step, metrics)`` of each evaluation, with ``val_loss``; and a row of only a ``train_loss`` that
        is not finite."""
        spec = self._spec
        for record in records:
            if record.restarts:
                self._carried, self._step, self._count = {}, None, 0
            step = record.step if record.step is not None else _whole(record.values.get(spec.step or "step"))
            self._step = step if step is not None else self._step
            named = {"train_loss": spec.train_loss or "train_loss"} if spec.stdout or spec.train_loss else {}
            others = [key for key in record.values if spec.stdout and key not in ("step", "val_loss", "train_loss")]
            named |= {key: key for key in (*spec.others, *others)}
            found = {
                name: value for name, key in named.items() if (value := number(record.values.get(key))) is not None
            }
            self._carried |= found
            loss = number(record.values.get(spec.val_loss))
            train_loss = found.get("train_loss", 0.0)
            if loss is None and math.isfinite(train_loss):
                continue
            at = self._step if self._step is not None else self._count
            if loss is None:
                yield at, {"train_loss": train_loss}
                continue
            self._count += 1
            metrics, self._carried = {**self._carried, "val_loss": loss}, {}
            yield at, metrics


def number(value: Any) -> float | None:
    """A number, or text that is one: ``nan`` and ``inf`` included, booleans and empty text excluded."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _whole(value: Any) -> int | None:
    found = number(value)
    return int(found) if found is not None and math.isfinite(found) else None

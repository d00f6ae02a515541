"""The newest rows of running cells, for views that redraw."""

from __future__ import annotations

from search_spaces.errors import InvalidInput
from search_spaces.record import Row
from service.home.layout import Home
from trainers.rows import read


class LiveRows:
    """The newest row of each running cell of a study; a file is read again only if its size changed."""

    def __init__(self, home: Home, study: str) -> None:
        self._home, self._study = home, study
        self._seen: dict[str, tuple[int, Row | None]] = {}

    def newest(self, cell_id: str) -> Row | None:
        """The last row with a validation loss; None before the first."""
        path = self._home.metrics(cell_id, self._study)
        size = path.stat().st_size if path.is_file() else 0
        cached = self._seen.get(cell_id, (-1, None))
        if size != cached[0]:
            cached = self._seen[cell_id] = (size, self._last_row(cell_id))
        return cached[1]

    def _last_row(self, cell_id: str) -> Row | None:
        try:
            rows = [row for row in read(self._home.metrics(cell_id, self._study)) if row.val_loss is not None]
        except InvalidInput:  # over a network file system, a line can be read while it is being written
            return None
        return rows[-1] if rows else None

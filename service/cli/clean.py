"""``oec clean``: files of a home that no run needs any more, how much room they take, and their removal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from search_spaces.errors import InvalidInput
from search_spaces.record import TERMINAL
from service.home import copies
from service.home.layout import Home
from service.home.studies import read_ledger, require_study, with_ledger, write_ledger

Kind = Literal["weights", "checkpoints"]
KINDS: dict[Kind, str] = {"weights": "kept weights", "checkpoints": "checkpoints of ended cells"}
"""By the name of their folder in that of a cell."""
TRAINED_ALONE = "(oec train)"
"""In place of a study's name, of the cells that ``oec train`` trained."""


@dataclass
class Removable:
    """Files of one kind of one study."""

    study: str | None
    """None: those of ``oec train``."""
    kind: Kind
    files: dict[str, int] = field(default_factory=dict)
    """Bytes, by name within the home."""
    cells: set[str] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def clean(home: Home, study: str | None, kinds: Sequence[Kind], yes: bool, console: Console) -> None:
    """Print what is there to remove, and remove it if ``yes``.

    Args:
        study: of the home; all of them and the cells of ``oec train`` if it is None.
        kinds: all if there are none, which lists alone.

    Raises:
        InvalidInput: no such study, or it is being run; ``yes`` without a kind.
    """
    if yes and not kinds:
        options = " and ".join(f"--{kind}" for kind in KINDS)
        raise InvalidInput("--yes", True, "does not say what to remove", f"add {options}, or one of them")
    if study is not None:
        require_study(home, study)
    with ExitStack() as held:
        names = [study] if study else with_ledger(home)
        if yes:  # from here on nobody runs them
            for name in names:
                held.enter_context(write_ledger(home, name))
        found = [one for one in removable(home, names, alone=study is None) if not kinds or one.kind in kinds]
        console.print(*_told(found, study, kinds, yes), sep="\n", soft_wrap=True)
        if yes:
            copies.remove_files(home, (name for one in found for name in one.files))


def removable(home: Home, studies: Iterable[str], *, alone: bool) -> Iterator[Removable]:
    """What each study has to remove, and with ``alone`` the cells of ``oec train`` too, of which no ledger tells
    whether a checkpoint is still needed.

    A crashed cell's checkpoint stays: ``oec run --retry-crashed`` resumes from it.
    """
    for name in studies:
        entries = read_ledger(home, name).entries
        open_ = {cell_id for cell_id, entry in entries.items() if entry.state not in TERMINAL - {"crashed"}}
        yield from _of_cells(home, name, open_)
    if alone:
        yield from (one for one in _of_cells(home, None, set()) if one.kind == "weights")


def _of_cells(home: Home, study: str | None, open_: set[str]) -> Iterator[Removable]:
    by_kind: dict[str, Removable] = {kind: Removable(study, kind) for kind in KINDS}
    for name, size in copies.list_files(home, f"studies/{study}/cells" if study else "cells").items():
        cell_id, *folders, _ = name.split("/")[3 if study else 1 :]
        of_kind = by_kind.get(folders[0]) if len(folders) == 1 else None
        if of_kind and not (of_kind.kind == "checkpoints" and cell_id in open_):
            of_kind.files[name] = size
            of_kind.cells.add(cell_id)
    yield from (one for one in by_kind.values() if one.files)


def _told(found: Sequence[Removable], study: str | None, kinds: Sequence[Kind], yes: bool) -> Iterator[Table | str]:
    if not found:
        what = " and no ".join(KINDS[kind] for kind in (kinds or KINDS))
        yield f"{f'study {study}' if study else 'this home'} has no {what}"
        return
    table = Table("study", "what", "cells", "files", "size")
    for one in found:
        numbers = (str(len(one.cells)), str(len(one.files)), decimal(one.bytes))
        table.add_row(one.study or TRAINED_ALONE, KINDS[one.kind], *numbers)
    yield table
    total = decimal(sum(one.bytes for one in found))
    if yes:
        yield f"removed: {total}"
        return
    options = " ".join(f"--{kind}" for kind in dict.fromkeys(one.kind for one in found))
    yield f"nothing was removed; `oec clean {f'{study} ' if study else ''}{options} --yes` frees {total}"

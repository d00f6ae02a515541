"""``oec clean``: finds files of a home that no run needs anymore, shows their size, and removes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from search_spaces.errors import InvalidInput
from search_spaces.record import TERMINAL
from service.home import copies
from service.home.layout import Home
from service.home.studies import read_ledger, require_study, with_ledger, write_ledger

KINDS = {"weights": "kept weights", "checkpoints": "checkpoints of ended cells"}
"""By the name of their folder within the folder of a cell."""
NO_STUDY = "(oec train)"
"""Shown in place of a study's name for cells that ``oec train`` trained."""


@dataclass
class Removable:
    """Files of one kind of one study."""

    study: str | None
    """None for cells of ``oec train``."""
    kind: str
    files: dict[str, int] = field(default_factory=dict)
    """Size in bytes, by name within the home."""
    cells: set[str] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def clean(home: Home, study: str | None, kinds: Sequence[str], yes: bool, console: Console) -> None:
    """List the files that can be removed, and with ``yes`` remove them.

    Args:
        study: a study of the home; None: all studies, and the cells of ``oec train``.
        kinds: the kinds of files; empty: all kinds, which are then only listed.

    Raises:
        InvalidInput: the study does not exist or is running, or ``yes`` is given without a kind.
    """
    if yes and not kinds:
        options = " and ".join(f"--{kind}" for kind in KINDS)
        raise InvalidInput("--yes", True, "requires a kind of files to remove", f"add {options}, or one of them")
    if study is not None:
        require_study(home, study)
    with ExitStack() as locks:
        names = [study] if study else with_ledger(home)
        if yes:  # the locks keep other processes from running the studies
            for name in names:
                locks.enter_context(write_ledger(home, name))
        found = [item for item in removable(home, names, train_cells=study is None) if not kinds or item.kind in kinds]
        console.print(*_summary(found, study, kinds, yes), sep="\n", soft_wrap=True)
        if yes:
            copies.remove_files(home, (name for item in found for name in item.files))


def removable(home: Home, studies: Iterable[str], *, train_cells: bool) -> Iterator[Removable]:
    """The removable files of each study, and with ``train_cells`` the weights of cells of ``oec train``.

    The checkpoint of a crashed cell stays, because ``oec run --retry-crashed`` resumes from it. So do checkpoints of
    ``oec train``, because no ledger says whether they are still needed.
    """
    for name in studies:
        entries = read_ledger(home, name).entries
        open_ = {cell_id for cell_id, entry in entries.items() if entry.state not in TERMINAL - {"crashed"}}
        yield from _in_cells(home, name, open_)
    if train_cells:
        yield from (item for item in _in_cells(home, None, set()) if item.kind == "weights")


def _in_cells(home: Home, study: str | None, open_: set[str]) -> Iterator[Removable]:
    by_kind = {kind: Removable(study, kind) for kind in KINDS}
    for name, size in copies.list_files(home, f"studies/{study}/cells" if study else "cells").items():
        cell_id, *folders, _ = name.split("/")[3 if study else 1 :]
        of_kind = by_kind.get(folders[0]) if len(folders) == 1 else None
        if of_kind and not (of_kind.kind == "checkpoints" and cell_id in open_):
            of_kind.files[name] = size
            of_kind.cells.add(cell_id)
    yield from (item for item in by_kind.values() if item.files)


def _summary(found: Sequence[Removable], study: str | None, kinds: Sequence[str], yes: bool) -> Iterator[Table | str]:
    if not found:
        what = " and no ".join(KINDS[kind] for kind in (kinds or KINDS))
        yield f"{f'study {study}' if study else 'this home'} has no {what}"
        return
    table = Table("study", "what", "cells", "files", "size")
    for item in found:
        numbers = (str(len(item.cells)), str(len(item.files)), decimal(item.bytes))
        table.add_row(item.study or NO_STUDY, KINDS[item.kind], *numbers)
    yield table
    total = decimal(sum(item.bytes for item in found))
    if yes:
        yield f"removed: {total}"
        return
    options = " ".join(f"--{kind}" for kind in dict.fromkeys(item.kind for item in found))
    yield f"nothing was removed; to free {total}, run `oec clean {f'{study} ' if study else ''}{options} --yes`"

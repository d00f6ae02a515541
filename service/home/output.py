"""The output of a command that trains a cell, as it is kept in the home."""

from __future__ import annotations

from search_spaces.errors import InvalidInput
from service.home import copies
from service.home.layout import Home
from service.home.studies import read_ledger, require_study
from trainers.command.output import NAME, read_output


def cell_output(home: Home, study: str, cell: str) -> str:
    """What the command of a cell has printed, as far as it is kept: on its first node, then on the others.

    Raises:
        InvalidInput: the home has no such study, the study no such cell, or the cell no output.
    """
    copies.pull(home, study)
    require_study(home, study)
    entry = read_ledger(home, study).entries.get(cell)
    if entry is None:
        raise InvalidInput("--cell", cell, f"is not a cell of {study}", f"`oec status {study} --cells` lists them")
    folder = home.cell(cell, entry.reused_from or study)
    for suffix in (NAME, f"{NAME}.1"):
        copies.download_folder(home, folder.relative_to(home.path).as_posix(), suffix)
    found = {one.name: text for one in (folder, *sorted(folder.glob("node-*"))) if (text := read_output(one))}
    if not found:
        problem = f"has no output ({entry.state}, {entry.cell.label})"
        raise InvalidInput("--cell", cell, problem, "only cells that a command trains have one, once they have started")
    first, *others = found.items()
    return first[1] + "".join(f"\n== {name} ==\n{text}" for name, text in others)

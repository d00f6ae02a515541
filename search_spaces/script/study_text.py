"""The text of a study for a training script, with a comment at each place that a person has to complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from search_spaces.script.draft import Draft, Missing, relative

ENTRY_POINTS = ("train", "main", "run", "pretrain", "training", "run_train", "train_script")
"""Names of scripts that say nothing: the study is then called like the folder."""


def default_name(script: Path) -> str:
    """A valid name for a study of this script."""
    stem = script.resolve().parent.name if script.stem.lower() in ENTRY_POINTS else script.stem
    name = re.sub(r"[^a-z0-9._-]+|\.{2,}", "-", stem.lower()).strip("-._")[:63]
    return name or "mine"


def study_text(draft: Draft, name: str, folder: Path) -> str:
    """A study file.

    Args:
        folder: where the file will be, which the study's directory is relative to.
    """
    return "\n".join(_lines(draft, name, folder)) + "\n"


def _lines(draft: Draft, name: str, folder: Path) -> Iterator[str]:
    trainer, notes = draft.trainer, list(draft.missing)
    directory = relative(draft.directory, folder)
    yield f"name: {_flow(name)}"
    yield "trainer:"
    yield from _notes(notes, "  ", "subcommand", "learning rate", *placeholders(trainer.get("command", "")))
    kind = "python" if "python" in trainer else "command"
    yield f"  {kind}: {_flow(trainer[kind])}"
    if directory != ".":
        yield f"  directory: {_flow(directory)}"
    yield f"  identity: {_flow(trainer['identity'])}  # the code: a change in these files makes new runs"
    if kind == "command":
        yield from _notes(notes, "  ", "metrics", "validation loss", "output folder")
        if trainer["metrics"]:
            yield f"  metrics: {_flow(trainer['metrics'])}"
        else:
            yield "  # metrics: {file: '{folder}/log.jsonl', step: step, val_loss: val_loss}"
            yield r"  # metrics: {stdout: 'step (?P<step>\d+).* val loss (?P<val_loss>\S+)'}"
        for note in _notes(notes, "  ", "l_init"):
            yield from (note, "  # l_init: 10.8")
        yield from _notes(notes, "  ", "resume")
        if trainer["resume"]:
            yield f"  resume: {_flow(trainer['resume'])}"
    yield from _notes(notes, "", *(note.what for note in notes if note.what not in (*draft.required_factors, "seed")))
    own = f"  # the script's own: {_flow(draft.own_lr)}" if draft.own_lr else ""
    yield f"lrs: {_flow(list(draft.lrs))}{own}"
    yield from _notes(notes, "", "seed")
    yield f"seeds: {draft.seeds}"
    if draft.required_factors:
        yield "factors:"
        for factor in draft.required_factors:
            yield from _notes(notes, "  ", factor)
            yield f"  {factor}: []"
    if draft.suggestions:
        yield "# Factors: each combination of values is a curve. Uncomment, and add the option to the command."
        yield "# factors:"
        for suggestion in draft.suggestions:
            yield f"#   {suggestion.name}: {_flow(list(suggestion.values))}  # {suggestion.words}"


def placeholders(command: str) -> list[str]:
    """The names in braces of a command."""
    return re.findall(r"\{(\w+)\}", command)


def _notes(notes: list[Missing], indent: str, *about: str) -> Iterator[str]:
    """Takes the notes about these things out of the list, as comments."""
    for note in [note for note in notes if note.what in about]:
        notes.remove(note)
        yield f"{indent}# {'TODO' if note.blocks else 'Note'}: {note.what}: {note.how}"


def _flow(value: Any) -> str:
    """One line of YAML. Floats have the dot that YAML 1.1 needs: 6.0e-05."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n").strip()

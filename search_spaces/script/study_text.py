"""The text of a study for a training script, with a comment at each place that a person has to complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from search_spaces.script.findings import FLOORS, Findings
from search_spaces.script.metrics import Stream

ENTRY_POINTS = ("train", "main", "run", "pretrain", "training", "run_train", "train_script")
"""Names of scripts that say nothing: the study is then called like the folder."""


def default_name(script: Path) -> str:
    """A valid name for a study of this script."""
    stem = script.resolve().parent.name if script.stem.lower() in ENTRY_POINTS else script.stem
    name = re.sub(r"[^a-z0-9._-]+|\.{2,}", "-", stem.lower()).strip("-._")[:63]
    return name or "mine"


def study_text(found: Findings, name: str) -> str:
    """A study file."""
    return "\n".join(_lines(found, name)) + "\n"


def _lines(found: Findings, name: str) -> Iterator[str]:
    yield f"name: {_flow(name)}"
    yield "trainer:"
    yield from _todo(found, "  ", "learning rate", *(argument.key for argument in found.required))
    yield f"  command: {_flow(found.command)}"
    yield f"  directory: {_flow(str(found.directory))}"
    yield f"  identity: {_flow(list(found.identity))}  # the code: a change in these files makes new runs"
    yield from _todo(found, "  ", "metrics", "validation loss")
    if found.stream:
        yield f"  metrics: {_flow(metrics(found.stream))}"
    else:
        yield "  # metrics: {file: '{folder}/log.jsonl', step: step, val_loss: val_loss}"
        yield r"  # metrics: {stdout: 'step (?P<step>\d+).* val loss (?P<val_loss>\S+)'}"
    yield from _todo(found, "  ", "resume")
    if found.resume is not None:
        yield f"  resume: {_flow(found.resume)}"
    yield from _todo(found, "", "lrs", *FLOORS)
    own = found.learning_rates[0].default if found.learning_rates else None
    yield f"lrs: {_flow(list(found.lrs))}" + (f"  # the script's own: {_flow(own)}" if own is not None else "")
    yield from _todo(found, "", "seed")
    yield f"seeds: {3 if found.seed else 1}"
    if found.factors:
        yield "# Factors: each combination of values is a curve. Uncomment, and add the option to the command."
        yield "# factors:"
        for argument, values in found.factors:
            yield f"#   {argument.key}: {_flow(list(values))}  # {argument.with_value('{' + argument.key + '}')}"


def metrics(stream: Stream) -> dict[str, Any]:
    """``trainer.metrics`` for a stream."""
    if stream.kind == "stdout":
        return {"stdout": stream.where}
    names = {"step": stream.step, "val_loss": stream.val_loss}
    return {
        "file": f"{{folder}}/{stream.where}",
        **{key: value for key, value in names.items() if value},
        **({"others": list(stream.others)} if stream.others else {}),
    }


def _todo(found: Findings, indent: str, *about: str) -> Iterator[str]:
    for missing in found.missing:
        if missing.what in about:
            yield f"{indent}# {'TODO' if missing.blocks else 'Note'}: {missing.what}: {missing.how}"


def _flow(value: Any) -> str:
    """One line of YAML. Floats have the dot that YAML 1.1 needs: 6.0e-05."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n").strip()

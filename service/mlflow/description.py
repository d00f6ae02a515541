"""The description of a study's parent run: its model card, with how to reproduce it."""

from __future__ import annotations

from collections.abc import Mapping

from dashboards.model_card import model_card
from dashboards.runs import from_records
from dashboards.sensitivity import curves
from search_spaces.record import STATES
from search_spaces.shipped import shipped
from search_spaces.study import Study
from service.home.ledger import Ledger
from service.mlflow.store import MAX_TAG_CHARACTERS


def description(study: Study, ledger: Ledger, links: Mapping[str, str]) -> str:
    """The model card of a study as of its ledger.

    Args:
        links: addresses by their text.
    """
    entries, counts = ledger.entries.values(), ledger.counts()
    data = sorted({entry.cell.source for entry in entries})
    torch = sorted({entry.result.torch for entry in entries if entry.result.torch})
    facts = {
        "Reproduce": _command(study),
        "Cells": ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]),
        "Command and files" if study.trainer else "Data": ", ".join(f"`{digest}`" for digest in data),
        "Trained with": ", ".join(f"torch {version}" for version in torch),
        "Study": f"`{study.hash}`",
    }
    return model_card(
        curves(from_records(ledger.records()), study.grid),
        description=study.description,
        links=links,
        facts={name: text for name, text in facts.items() if text},
        max_characters=MAX_TAG_CHARACTERS,
    )


def _command(study: Study) -> str:
    if study.name in shipped() and Study.load(study.name).hash == study.hash:
        return f"`oec run {study.name}`"
    return "`oec run study.yaml` on the `study.yaml` among the artifacts"

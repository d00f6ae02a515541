"""The model card of a study, in Markdown: the recommendation, the verdict, and the table of LRS."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from dashboards.answer import answer
from dashboards.recommendation import recommendation
from dashboards.sensitivity import CurveFacts
from dashboards.tables import Sheet, format_columns, heading_of, sensitivity_table, to_markdown
from dashboards.valley_table import COLUMNS as VALLEY_COLUMNS

LEFT_OUT = ("LRS_low", "LRS_high", "LRS_n", "cells", "overhead_percent", *VALLEY_COLUMNS, "note")
"""Columns that the table does not have as such: MLflow shows it in two thirds of a page, without lines."""

HEADER_LINES = 2
"""Of a table in Markdown."""


def model_card(
    curves: Sequence[CurveFacts],
    *,
    description: str,
    links: Mapping[str, str],
    facts: Mapping[str, str],
    max_characters: int,
) -> str:
    """A model card of at most ``max_characters``. If the table is too long, its last rows are left out.

    Every paragraph is one line, because MLflow shows a line break as one.

    Args:
        description: the purpose of the study.
        links: addresses by their text.
        facts: further lines, by name, such as how to reproduce the study.
    """
    sentences = recommendation(curves)
    head = [f"**{sentences[0]}** {' '.join(sentences[1:])}".strip()] if sentences else []
    head.append(" · ".join(f"[{text}]({address})" for text, address in links.items()))  # shown before "Show more"
    head.append(answer(curves))
    tail = ["\n".join(f"- {name}: {text}" for name, text in facts.items()), description]
    room = max_characters - len(_join([*head, *tail])) - len("\n\n")
    return _join([*head, _table(sensitivity_table(curves), room), *tail])[:max_characters]


def _join(paragraphs: Sequence[str]) -> str:
    return "\n\n".join(filter(None, paragraphs))


def _table(curves: pd.DataFrame, room: int) -> str:
    """As many rows as fit into ``room`` characters, and the number of the others."""
    if curves.empty:
        return ""
    texts = format_columns(curves)
    if {"LRS_low", "LRS_high"} <= set(texts):
        known = curves["LRS_low"].notna()
        texts["LRS"] += (" (" + texts["LRS_low"] + " to " + texts["LRS_high"] + ")").where(known, "")
    texts = texts.drop(columns=list(LEFT_OUT), errors="ignore")
    texts = texts.rename(columns=lambda name: f"{heading_of(name)}&emsp;")  # MLflow's columns touch each other
    padded = to_markdown(Sheet(name="card", values=curves, texts=texts)).decode()
    lines = re.sub(r"-{3,}", "--", re.sub(" {2,}", " ", padded)).splitlines()
    table = "\n".join(lines)
    while len(table) > room and len(lines) > HEADER_LINES:
        lines.pop()
        table = "\n".join([*lines, "", f"The report has {len(texts) + HEADER_LINES - len(lines)} more rows."])
    return table if len(lines) > HEADER_LINES else ""

"""The model card: what readers of MLflow find in the description of a study."""

from __future__ import annotations

import pytest
from made_up import GRID, curve, study

from dashboards.model_card import model_card
from dashboards.recommendation import recommendation
from dashboards.sensitivity import CurveFacts, curves

LOSSES = [3.5, 3.0, 3.2, 3.4]
LIMIT = 5000


def card(facts: list[CurveFacts], limit: int = LIMIT) -> str:
    links, lines = {"Compare": "#/there"}, {"Data": "`digest`"}
    return model_card(facts, description="The purpose.", links=links, facts=lines, max_characters=limit)


def many() -> list[CurveFacts]:
    """Returns curves with different gammas, enough to exceed the limit of a description several times."""
    return curves(study(*(curve(LOSSES, method="z-loss", gamma=1e-6 * n) for n in range(1, 201))), GRID)


def test_the_recommendation_comes_first_then_links_then_one_row_per_curve() -> None:
    by_seed = {seed: [loss + seed * lr for loss, lr in zip(LOSSES, GRID, strict=True)] for seed in (1, 2)}
    of_both = [curve(losses, method=m, seed=s) for m in ("baseline", "max-z") for s, losses in by_seed.items()]
    facts = curves(study(*of_both), GRID)
    first, links, _, table, *_ = card(facts).split("\n\n")
    assert first.startswith(f"**{recommendation(facts)[0]}**")
    assert links == "[Compare](#/there)"
    header, rule, *rows = table.splitlines()
    assert len(rows) == len(facts) == 2
    assert header.count("|") == rule.count("|") == rows[0].count("|")
    low, high = facts[0].interval or (0.0, 0.0)
    assert f"{facts[0].LRS:.3f} ({low:.3f} to {high:.3f})" in table


@pytest.mark.parametrize("limit", [2000, LIMIT])
def test_a_long_table_is_cut_and_says_so(limit: int) -> None:
    facts = many()
    text = card(facts, limit)
    assert limit - 100 < len(text) <= limit
    rows = text.count("| z-loss |")
    assert f"The report has {len(facts) - rows} more rows." in text
    assert text.endswith("- Data: `digest`\n\nThe purpose."), "what follows the table must be complete"


def test_without_space_there_is_no_table() -> None:
    facts = many()
    parts = card(facts).split("\n\n")
    rest = "\n\n".join(part for part in parts if not part.startswith(("| ", "The report has")))
    assert card(facts, len(rest) + 50) == rest


def test_a_study_without_results_has_a_card() -> None:
    assert card([]).endswith("- Data: `digest`\n\nThe purpose.")

"""From a study to its cells: counts, order, ids, and estimates."""

from __future__ import annotations

import pytest
from hypothesis import given

from search_spaces.cell import Cell
from search_spaces.methods import METHODS, label
from search_spaces.plan import NOMINAL_FLOPS_PER_WORKER, NOMINAL_SECONDS_PER_STEP, Plan, refinement_space
from search_spaces.scales import SCALES
from search_spaces.study import Study
from tests.search_spaces.test_study import studies


@pytest.mark.parametrize(
    ("name", "cells"), [("smoke", 6), ("demo", 6), ("short", 49), ("norms", 182), ("paper", 140), ("gamma", 280)]
)
def test_cells_of_the_shipped_studies(name: str, cells: int) -> None:
    plan = Plan(Study.load(name), "data")
    assert len(plan.cells) == plan.cell_count == cells


def test_the_demo_is_part_of_miniature_and_the_control_only_differs_in_its_logits() -> None:
    demo, miniature, control = (Plan(Study.load(n), "data") for n in ("demo", "miniature", "miniature-float32"))
    known = {cell.id: cell for cell in miniature.cells}
    assert all(cell.id in known for cell in demo.cells)
    for cell in control.cells:
        training = cell.training.model_copy(update={"logits_dtype": "bfloat16"})
        assert cell.model_copy(update={"training": training}).id in known


@given(studies())
def test_the_plan_has_every_grid_cell_once(study: Study) -> None:
    plan = Plan(study, "data")
    strengths = sum(len(choice.gammas) for choice in study.methods)
    strengths *= len(study.attention_norms)
    assert len(plan.cells) == len(study.scales) * strengths * len(study.lrs) * len(study.seeds)
    assert len({cell.id for cell in plan.cells}) == len(plan.cells)
    assert sorted(cell.id for curve in plan.curves for cell in curve.cells) == sorted(cell.id for cell in plan.cells)
    parameters = [SCALES[cell.scale].parameters(cell.V) for cell in plan.cells]
    assert parameters == sorted(parameters, reverse=True), "large cells must come first"


def test_an_id_depends_only_on_the_content() -> None:
    """This value is golden: if an id changes for no good reason, every user's finished cells are trained again."""
    cell = Plan(Study.load("smoke"), "data").cells[0]
    assert cell.id == GOLDEN_ID
    assert Cell.model_validate_json(cell.model_dump_json()).id == cell.id
    for change in (
        {"lr": 0.5},
        {"seed": 2},
        {"data": "other"},
        {"V": 512},
        {"scale": "5M"},
        {"method": "max-z"},
        {"attention_norm": "none"},
    ):
        assert cell.model_copy(update=change).id != cell.id, change


def test_a_field_that_was_added_later_changes_the_id_only_if_it_is_used() -> None:
    cell = Plan(Study.load("smoke"), "data").cells[0]
    training = cell.training.model_copy(update={"deterministic": True})
    assert cell.model_copy(update={"training": training}).id != cell.id == GOLDEN_ID


GOLDEN_ID = "0e6bce28ee9e"


def test_equal_cells_of_different_studies_are_one_cell() -> None:
    smoke = Study.load("smoke")
    other = Study.validate_fields(smoke.model_dump() | {"name": "other", "resources": {"workers": 1}, "intervals": {}})
    assert {cell.id for cell in Plan(smoke, "data").cells} == {cell.id for cell in Plan(other, "data").cells}


@pytest.mark.parametrize("scale", [name for name in SCALES if name.endswith("M") and name not in ("5M", "8M")])
def test_names_of_the_published_scales(scale: str) -> None:
    """The name counts the blocks and one embedding. Those of the two smallest scales are too rough to test."""
    counted = SCALES[scale].parameters(50304, tied=True) / 1e6
    exact = {"16M": 15.6, "221M": 220.8}
    assert counted == pytest.approx(exact.get(scale, float(scale[:-1])), rel=0.005 if scale in exact else 0.03)


def test_hidden_widths() -> None:
    widths = {name: scale.hidden for name, scale in SCALES.items()}
    assert widths == {
        "nano": 256, "tiny": 256, "w96": 256, "w192": 512, "w384": 1024, "w768": 2048,
        "5M": 256, "8M": 512, "10M": 512, "16M": 768, "23M": 768, "29M": 1024, "37M": 1024,
        "57M": 1280, "85M": 1536, "109M": 1792, "149M": 2048, "221M": 2304, "347M": 2816, "455M": 3072, "612M": 3584,
        "902M": 4096,
    }  # fmt: skip


def test_a_ladder_of_widths_only_grows_in_width() -> None:
    widths = [SCALES[f"w{D}"] for D in (96, 192, 384, 768)]
    assert {(scale.L, scale.D / scale.H, scale.hidden / scale.D) for scale in widths} == {(2, 32.0, 8 / 3)}
    assert [scale.D for scale in widths] == [96, 192, 384, 768]


def test_estimate_uses_measured_speeds_if_there_are_any() -> None:
    plan = Plan(Study.load("smoke"), "data")
    assert plan.seconds({"tiny": plan.tokens / 10.0}, concurrency=2) == pytest.approx(5.0)
    nominal = sum(cell.flops for cell in plan.cells) / NOMINAL_FLOPS_PER_WORKER / 2
    overhead = NOMINAL_SECONDS_PER_STEP * 6 * 20
    assert plan.seconds({}, concurrency=1) == pytest.approx(nominal + overhead), "each cell has two workers"


def test_the_estimate_of_the_demo_matches_the_readme() -> None:
    """The README says 4 to 5 minutes on two cores, before anything has been measured."""
    assert 4 <= Plan(Study.load("demo"), "data").seconds({}, concurrency=2) / 60 <= 5


def test_refinement_counts_at_most_what_its_budget_allows() -> None:
    """There are two scales with three curves each, over four learning rates with a ratio of 10. An edge takes up to 3
    steps and 4 bisections per seed."""
    smoke = Study.load("smoke").model_dump() | {"scales": ["tiny", "5M"], "lrs": [1e-3, 1e-2, 1e-1, 1.0], "seeds": 2}

    def plan(**refine: object) -> Plan:
        return Plan(Study.validate_fields(smoke | {"refine": refine}), "data")

    grid = 2 * 3 * 4 * 2
    assert plan().cell_count == grid
    assert plan(trials=5).refinement_cells == {"5M": 15, "tiny": 15}
    assert plan(edge=1.2).refinement_cells == {"5M": 3 * 7 * 2, "tiny": 3 * 7 * 2}
    assert plan(edge=1.2, trials=5).cell_count == grid + 2 * (42 + 15)
    limited = plan(edge=1.2, budget={"cells": 50})
    assert limited.refinement_cells == {"5M": 42, "tiny": 8}, "an upper bound must count large cells first"
    assert limited.tokens == (grid + 50) * limited.cells[0].tokens
    speeds = {"tiny": 1e3, "5M": 1e2}
    minutes = plan(edge=1.2, budget={"minutes": 0.5}).seconds(speeds, concurrency=2)
    assert minutes == pytest.approx(plan().seconds(speeds, concurrency=2) + 30 / 2)


def test_refinement_searches_the_grid_and_beyond_it_in_gamma() -> None:
    study = Study.load("short").model_copy(update={"methods": (Study.load("gamma").methods[0],)})
    assert refinement_space("z-loss", study) == {"lr": (1e-3, 10.0), "gamma": (1e-7, 1e2)}
    assert refinement_space("baseline", study) == {"lr": (1e-3, 10.0)}


def test_labels() -> None:
    assert label("baseline", None) == "baseline"
    assert label("z-loss", 1e-4) == "z-loss (gamma=0.0001)"
    assert label("baseline", None, "qk-norm") == "baseline"
    assert label("z-loss", 1e-4, "none") == "z-loss (gamma=0.0001) + none"
    assert label("soft-cap", 30) == "soft-cap (c=30)"
    assert all(method.source and method.summary for method in METHODS.values())

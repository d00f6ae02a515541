"""Factors: their combinations, their cells, and the ids of cells and studies without factors."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.cell import Cell, ForeignCell, parse_cell
from search_spaces.edge import Edge, search
from search_spaces.errors import InvalidInput
from search_spaces.factors import combinations, from_json, matches, to_json, to_text
from search_spaces.plan import Plan
from search_spaces.shipped import shipped
from search_spaces.study import Study

DECAYS, BETAS = [0, 1e-4], [[0.9, 0.95], [0.9, 0.99]]
FACTORS = {"training.weight_decay": DECAYS, "training.betas": BETAS}
SMALL = {"name": "s", "scales": ["tiny"], "methods": ["baseline"], "lrs": [1e-3, 1e-2]}
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab"),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)


def study(**fields: Any) -> Study:
    return Study.validate_fields(SMALL | fields)


def plan(**fields: Any) -> Plan:
    return Plan(study(**fields), "0" * 64)


def test_every_combination_is_a_curve_with_its_values_in_its_cells() -> None:
    found = plan(factors=FACTORS)
    trained = {(cell.training.weight_decay, cell.training.betas, cell.lr) for cell in found.cells if type(cell) is Cell}
    assert trained == set(product(DECAYS, map(tuple, BETAS), SMALL["lrs"]))
    assert len({cell.id for cell in found.cells}) == len(found.cells) == 8
    assert [curve.key.factors[0][1] for curve in found.curves] == [0, 0, 1e-4, 1e-4], (
        "the first factor must change slowest"
    )
    assert all(cell.curve == curve.key for curve in found.curves for cell in curve.cells)


def test_a_cell_with_factors_is_the_same_cell_without_them() -> None:
    """A home of a study without factors therefore already has some results of a study with them."""
    (with_factors, *_), (without, *_) = plan(factors=FACTORS).cells, plan().cells
    assert with_factors.factors
    assert with_factors.id == without.id


def test_studies_and_cells_without_factors_have_kept_their_ids() -> None:
    """The ids are those of the version before factors, whose homes can still be read."""
    ids = {name: (Study.load(name).hash, Plan(Study.load(name), "x" * 64).cells[0].id) for name in shipped()}
    assert ids["demo"] == ("ccdb1622052c", "de25f5787c7d")
    assert ids["gamma"] == ("4eb0cfcbb829", "b185119f767b")
    assert ids["norms"] == ("c72976fd451d", "48ad0f337c83")
    assert "factors" not in plan().cells[0].model_dump()


def test_another_axis_replaces_the_learning_rate() -> None:
    found = plan(factors={"training.eps": [1e-10, 1e-8], "training.weight_decay": DECAYS}, lr_factor="training.eps")
    assert found.study.grid == (1e-10, 1e-8)
    assert len(found.curves) == 4, "expected one curve per weight decay and learning rate"
    assert {(cell.x, cell.lr) for cell in found.cells} == set(product(found.study.grid, SMALL["lrs"]))
    assert all(type(cell) is Cell and cell.training.eps == cell.x for cell in found.cells)
    assert all(cell.curve == curve.key for curve in found.curves for cell in curve.cells)


def test_an_axis_of_whole_numbers_stays_whole() -> None:
    found = plan(factors={"training.batch_size": [8, 16]}, lr_factor="training.batch_size", lrs=[1e-3])
    assert [type(cell) is Cell and cell.training.batch_size for cell in found.cells] == [8, 16]
    assert [cell.factors for cell in found.cells] == [{"training.batch_size": 8}, {"training.batch_size": 16}]


def test_paired_factors_change_together() -> None:
    fields = {"training.schedule": ["cosine", "wsd"], "training.decay_share": [None, 0.2]}
    found = plan(factors=fields, pair=[list(fields)])
    assert [curve.key.factors for curve in found.curves] == [
        (("training.schedule", "cosine"), ("training.decay_share", None)),
        (("training.schedule", "wsd"), ("training.decay_share", 0.2)),
    ]


@pytest.mark.parametrize(
    ("rule", "curves"),
    [
        ({"training.weight_decay": 0}, 4),
        ({"training.weight_decay": [0, 1e-4], "training.betas": [0.9, 0.99]}, 4),
        ({"training.betas": [[0.9, 0.99]], "method": "z-loss"}, 6),
        ({"method": "z-loss"}, 4),
    ],
)
def test_exclude_drops_the_combinations_that_match_all_of_a_rule(rule: dict[str, Any], curves: int) -> None:
    assert len(plan(methods=["baseline", "z-loss"], factors=FACTORS, exclude=[rule]).curves) == curves


@pytest.mark.parametrize(
    ("fields", "problem", "remedy"),
    [
        ({"factors": {"training.weight_dcay": [0]}}, "not a known field", "did you mean 'training.weight_decay'"),
        ({"factors": {"training.betas": [[1, 2]]}}, "which is not allowed", "less than 1"),
        ({"factors": {"training.eps": []}}, "is empty", "at least one"),
        ({"factors": {"model.tied": [True, True]}}, "contains a duplicate", "remove it"),
        ({"factors": {"training.weight_decay": [{}]}}, "contains {}", "give numbers"),
        ({"lr_factor": "training.eps"}, "not a factor of this study", "factors.training.eps"),
        ({"factors": FACTORS, "lr_factor": "training.weight_decay"}, "no place for 0", "positive numbers"),
        ({"factors": {"training.eps": [1e-4, 1e-8]}, "lr_factor": "training.eps"}, "ascending", "sort"),
        ({"factors": {"training.schedule": ["cosine", "wsd"]}}, "with schedule=wsd", "last fifth"),
        ({"factors": {"training.batch_size": [1, 2]}, "resources": {"workers": 2}}, "with batch_size=1", "use 2"),
        ({"factors": FACTORS, "exclude": [{"method": "z-loss"}]}, "does not occur", "correct"),
        ({"factors": FACTORS, "exclude": [{"sede": 1}]}, "curves do not differ in", "training.betas"),
        ({"factors": FACTORS, "exclude": [{"training.weight_decay": DECAYS}]}, "every combination", "remove"),
        ({"factors": FACTORS, "pair": [["training.betas", "training.eps"]]}, "not a factor", "factors.training.eps"),
        ({"factors": FACTORS | {"training.eps": [1e-8]}, "pair": [["training.betas", "training.eps"]]}, "2 values", ""),
        (
            {"factors": {"training.optimizer": ["adamw", "muon"], "training.muon_lr_ratio": [1, 0.5]}},
            "trains the same cells with optimizer=adamw, muon_lr_ratio=1 and with optimizer=adamw, muon_lr_ratio=0.5",
            "exclude",
        ),
        ({"factors": FACTORS, "pair": [list(FACTORS), list(FACTORS)]}, "training.weight_decay twice", "one group"),
        ({"factors": {"training.eps": ["1e-8", 1e-8]}}, "contains a duplicate", "remove it"),
        (
            {"factors": {"training.batch_size": [8, 16]}, "lr_factor": "training.batch_size", "refine": {"edge": 1.5}},
            "whole numbers",
            "remove refine",
        ),
    ],
)
def test_bad_factors_are_refused_with_a_remedy(fields: dict[str, Any], problem: str, remedy: str) -> None:
    with pytest.raises(InvalidInput) as error:
        study(**fields)
    assert problem in error.value.problem
    assert remedy in error.value.remedy


def test_a_foreign_cell_is_read_back_and_its_id_depends_on_its_trainer() -> None:
    cell = ForeignCell(trainer="a" * 64, name="train.py", kind="command", lr=1e-3, seed=1, factors={"wd": 0.1})
    other = cell.model_copy(update={"trainer": "b" * 64})
    assert parse_cell(json.loads(cell.model_dump_json())) == cell
    assert cell.id != other.id
    assert cell.label == "train.py wd=0.1 lr=0.001 seed=1"
    assert cell.id == cell.model_copy(update={"name": "other.py"}).id, "a display name does not change the result"


@given(st.dictionaries(st.text("ab.", min_size=1), values, max_size=3))
def test_factors_as_text_are_read_back(factors: dict[str, Any]) -> None:
    assert from_json(to_json(factors) or "") == factors
    assert isinstance(to_text(factors), str)


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(), min_size=1, max_size=3, unique=True)))
def test_combinations_are_the_product_in_order(factors: dict[str, list[int]]) -> None:
    found = list(combinations(factors, []))
    assert [tuple(each.values()) for each in found] == list(product(*factors.values()))
    assert all(matches(each, each) for each in found)


def test_excluded_combinations_may_be_invalid() -> None:
    schedules = {"training.schedule": ["cosine", "wsd"], "training.decay_share": [None, 0.2]}
    rules = [
        {"training.schedule": "cosine", "training.decay_share": 0.2},
        {"training.schedule": "wsd", "training.decay_share": None},
    ]
    assert len(plan(factors=schedules, exclude=rules).curves) == 2


def test_an_edge_stays_within_the_valid_values_of_its_field() -> None:
    found = study(factors={"model.dropout": [0.1, 0.3, 0.9]}, lr_factor="model.dropout", refine={"edge": 1.5})
    over = search(found.grid, found.seeds, 1.5, lambda x, seed: "converged", found.accepts)
    assert (over.edge, over.ask, over.cells_left) == (Edge(low=0.9), None, 0), "a dropout of 2.7 is invalid"


def test_text_stays_text() -> None:
    trainer = {"command": "python train.py --lr {lr} --commit {commit}", "metrics": {"stdout": "(?P<val_loss>.+)"}}
    fields = {"name": "mine", "trainer": trainer, "lrs": [1e-3], "factors": {"commit": ["12e5", "ab3"]}}
    assert Study.validate_fields(fields).factors["commit"] == ("12e5", "ab3")

"""Figures: the data behind each one, one color per method, overlays and links."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import GRID, L_INIT, curve, study

from dashboards import published
from dashboards.facts import diagnostic_facts, loss_facts, lrs_facts
from dashboards.figures import figures
from dashboards.runs import read_csv
from dashboards.sensitivity import curves
from dashboards.views import COLORS, GREY, Line, color_of_norm, filters_by_line, lines, views
from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.methods import METHODS


def drawn_of(runs: pd.DataFrame) -> list[Line]:
    return lines(curves(runs, GRID))


@pytest.fixture(scope="module")
def found() -> list[Line]:
    """Returns lines of three methods: mu-loss with two gammas, two seeds of the baseline, a diverged and a crashed
    cell, and one diagnostic."""
    broken = curve([3.4, 3.1, 3.0, 3.3], method="z-loss", gamma=1e-1)
    broken[0] |= {"state": "crashed", "val_loss": None}
    return drawn_of(
        study(
            *(curve([3.5, 3.0, 3.2, math.nan], seed=seed, output_mu_norm=0.0) for seed in (1, 2)),
            curve([3.4, 3.1, 3.0, 3.3], method="mu-loss", gamma=1e-4),
            curve([3.4, 3.1, 3.0, 3.2], method="mu-loss", gamma=1e-1),
            broken,
        )
    )


def layers_with(spec: dict[str, Any], mark: str) -> list[dict[str, Any]]:
    return [layer for layer in spec["layer"] if layer["mark"]["type"] == mark]


def test_every_method_has_its_own_color() -> None:
    assert set(COLORS) == set(METHODS), "a new method needs a color in dashboards.views.COLORS"
    assert len(set(COLORS.values())) == len(COLORS)


def test_a_diverged_cell_is_a_fact_at_l_init(found: list[Line]) -> None:
    facts = loss_facts(found)
    assert len(facts) == 8 + 4 + 4 + 3, "every cell with a result must be a row"
    diverged = facts[facts["diverged"]]
    assert diverged["loss"].tolist() == pytest.approx([L_INIT, L_INIT])
    assert facts.loc[facts["cell"] == "baseline-None-0.001-1", "mean"].item() == 3.5


def test_a_curve_without_lrs_is_not_in_its_facts(found: list[Line]) -> None:
    assert set(lrs_facts(found)["label"]) == {"baseline", "mu-loss (gamma=0.0001)", "mu-loss (gamma=0.1)"}


def test_a_non_finite_diagnostic_is_not_drawn() -> None:
    records = curve([3.5, 3.0, 3.2, 3.4])
    for record, value in zip(records, (1.0, math.nan, math.inf, 0.0), strict=True):
        record["logits_mean"] = value
    assert diagnostic_facts(drawn_of(study(records)), "logits_mean")["value"].tolist() == [1.0, 0.0]


def test_the_names_of_the_figures(found: list[Line]) -> None:
    assert [figure.name for figure in figures(found)] == [
        "loss-tiny", "lrs-tiny", "lrs-gamma-tiny", "output-mu-norm-tiny"
    ]  # fmt: skip
    assert figures([]) == []
    names = {figure.name for figure in figures(lines(curves(read_csv(published.RUNS_CSV))))}
    assert len(names) == 5 * 8 + 2 + 4, (
        "expected 8 figures per scale, and those of all scales for the methods and for 2 gamma sweeps"
    )
    assert {"loss-scales", "lrs-scale", "loss-scales-z-loss", "lrs-scale-mu-loss"} <= names


def test_the_loss_figure_marks_diverged_cells_and_the_ceiling(found: list[Line]) -> None:
    spec = figures(found)[0].spec
    points = layers_with(spec, "point")
    assert len(points) == 2, "expected one layer of points and one of the baseline's crosses"
    assert points[0]["mark"].get("shape") != points[1]["mark"]["shape"]
    assert len(layers_with(spec, "rule")) == 1
    colors = points[0]["encoding"]["color"]["scale"]
    assert dict(zip(colors["domain"], colors["range"], strict=True))["mu-loss (gamma=0.1)"] == COLORS["mu-loss"]


def test_the_mean_of_several_seeds_has_a_band_and_the_frame_shows_every_seed() -> None:
    seeds = [3.0, 3.1, 3.3]
    found = drawn_of(study(*(curve([3.5, 3.0, 3.2, loss], seed=s) for s, loss in enumerate(seeds))))
    low, high = found[0].curve.band[3] or (math.nan, math.nan)
    assert (low + high) / 2 == pytest.approx(np.mean(seeds))
    assert (high - low) / 2 == pytest.approx(4.303 * np.std(seeds, ddof=1) / 3**0.5, rel=1e-3)
    facts = loss_facts(found)
    assert facts.loc[facts["lr"] == 1.0, "low"].tolist() == pytest.approx([low] * 3)
    spec = figures(found)[0].spec
    (band,) = layers_with(spec, "area")
    bottom, top = band["encoding"]["y"]["scale"]["domain"]
    assert low < bottom < 3.0 < 3.5 < top < L_INIT


def test_a_band_ends_at_the_initial_loss() -> None:
    found = drawn_of(study(*(curve([3.5, 3.0, 3.2, loss], seed=s) for s, loss in enumerate([3.0, 3.1, math.nan]))))
    assert found[0].curve.band[3] is not None
    assert found[0].curve.band[3][1] == pytest.approx(L_INIT)


def test_one_seed_has_no_band() -> None:
    found = drawn_of(study(curve([3.5, 3.0, 3.2, 3.4])))
    assert found[0].curve.band == (None,) * 4
    assert not layers_with(figures(found)[0].spec, "area")


def test_if_no_loss_is_near_the_ceiling_the_caption_gives_its_value() -> None:
    figure = figures(drawn_of(study(curve([3.5, 3.0, 3.2, 3.4]))))[0]
    assert not layers_with(figure.spec, "rule")
    assert "6.93" in figure.caption


def test_studies_are_distinguished() -> None:
    swept = [
        curve([3.5, 3.0, 3.2, 3.4], method="mu-loss", gamma=gamma, study=name) for name in "AB" for gamma in (1, 2)
    ]
    drawn = drawn_of(study(*swept, *(curve([3.5, 3.0, 3.2, 3.4], study=name) for name in "AB")))
    assert [line.name for line in drawn[:2]] == ["A: baseline", "A: mu-loss (gamma=1)"]
    assert len({(line.color, line.dash, line.shape) for line in drawn}) == len(drawn)
    gammas = figures(drawn)[2]
    assert gammas.name == "lrs-gamma-tiny"
    assert "dashes distinguish the studies." in gammas.caption
    for mark in ("line", "rule"):
        dashes = layers_with(gammas.spec, mark)[-1]["encoding"]["strokeDash"]
        assert dashes["field"] == "series"
        assert dashes["scale"]["domain"] == ["A", "B"]


def test_factors_have_their_own_lines_over_gamma() -> None:
    found = drawn_of(
        study(
            *(
                curve([3.5 + decay, 3.0, 3.2, 3.4], factors=f'{{"training.weight_decay": {decay}}}', **method)
                for decay in (0, 0.1)
                for method in ({}, {"method": "mu-loss", "gamma": 1}, {"method": "mu-loss", "gamma": 2})
            )
        )
    )
    (gammas,) = [figure for figure in figures(found) if figure.name == "lrs-gamma-tiny"]
    swept = gammas.spec["datasets"]["swept"]
    assert sorted(row["series"] for row in swept) == ["weight_decay=0"] * 2 + ["weight_decay=0.1"] * 2
    assert layers_with(gammas.spec, "line")[0]["encoding"]["strokeDash"]["field"] == "series"
    assert "dashes distinguish the factors." in gammas.caption


def test_eight_lines_can_share_a_color() -> None:
    many = [curve([3.5, 3.0, 3.2, 3.4], method="mu-loss", gamma=gamma) for gamma in range(1, 9)]
    assert len({line.shape for line in drawn_of(study(*many))}) == 8, "a legend shows shapes but not dashes"


def compared(*norms: str, methods: tuple[str, ...] = ("baseline",), scales: tuple[str, ...] = ("tiny",)) -> list[Line]:
    """Returns lines of every method with every attention norm at every scale."""
    records = [
        curve([3.5, 3.0, 3.2, 3.4], attention_norm=norm, method=method, scale=scale)
        for norm in norms
        for method in methods
        for scale in scales
    ]
    return drawn_of(study(*records))


def test_methods_are_compared_under_one_norm_each() -> None:
    drawn = compared("none", "qk-norm", methods=("baseline", "mu-centering", "max-z"))
    seen = {view.name: [line.name for line in view.lines] for view in views(drawn)}
    assert seen == {f"tiny, {norm}": ["baseline", "mu-centering", "max-z"] for norm in ("none", "qk-norm")}
    assert [figure.name for figure in figures(drawn)] == [
        f"{what}-tiny, {norm}" for what in ("loss", "lrs") for norm in ("none", "qk-norm")
    ]


def test_norms_are_compared_under_one_method_each_if_they_outnumber_the_methods() -> None:
    drawn = compared(*ATTENTION_NORMS, methods=("baseline", "mu-centering"))
    seen = {view.name: [line.name for line in view.lines] for view in views(drawn)}
    assert seen == {f"tiny, {method}": list(ATTENTION_NORMS) for method in ("baseline", "mu-centering")}
    figure = figures(drawn)[0]
    colors = layers_with(figure.spec, "point")[0]["encoding"]["color"]["scale"]
    assert dict(zip(colors["domain"], colors["range"], strict=True))["qkv-norm"] == color_of_norm("qkv-norm")


def test_norms_have_distinct_styles() -> None:
    looks = {(line.color, line.dash, line.shape) for line in compared(*ATTENTION_NORMS, "from-elsewhere")}
    assert len(looks) == len(ATTENTION_NORMS) + 1, (
        "one color has more norms than there are dashes: extend dashboards.views.DASHES"
    )
    assert color_of_norm("none") == GREY


def test_gamma_can_be_selected_if_a_method_has_several(found: list[Line]) -> None:
    assert filters_by_line(found) == {"gamma": {"mu-loss (gamma=0.0001)": "0.0001", "mu-loss (gamma=0.1)": "0.1"}}, (
        "z-loss has only one gamma"
    )
    of_z_loss = [curve([3.5, 3.0, 3.2, 3.4], method="z-loss", gamma=gamma) for gamma in (1e-4, 1e-1)]
    under = [[run | {"attention_norm": norm} for norm in ATTENTION_NORMS for run in runs] for runs in of_z_loss]
    assert filters_by_line(drawn_of(study(*under))) == {}, "the views already separate them"


def test_a_single_norm_is_named_unless_it_is_the_default() -> None:
    assert [line.name for line in compared("none")] == ["baseline + none"]
    assert [(line.name, line.group) for line in compared("qk-norm")] == [("baseline", "")]


def test_published_curves_overlay_those_of_the_same_scale_and_vocabulary() -> None:
    mine = curve([3.9, 3.8, 3.9, 4.0], scale="16M", l_init=10.84)
    (loss, *_) = figures(drawn_of(study(mine)))
    assert len(loss.overlay) == len(published.METHODS)
    first = loss.overlay[0]["data"]["values"]
    runs = read_csv(published.RUNS_CSV).query("scale == '16M' and method == 'baseline'")
    assert all(len(layer["data"]["values"]) == 7 for layer in loss.overlay), (
        "expected one gamma, that of the main comparison"
    )
    assert [point["loss"] for point in first] == runs["val_loss"].tolist()
    assert {point["label"] for point in first} == {"baseline, published"}
    for other in (curve([3.9, 3.8, 3.9, 4.0], scale="16M"), curve([3.9, 3.8, 3.9, 4.0], l_init=10.84)):
        assert not figures(drawn_of(study(other)))[0].overlay, "the vocabulary or the scale differs"
    assert not figures(drawn_of(study(mine)), published=False)[0].overlay


def test_points_link_to_their_runs_if_known() -> None:
    records = study(curve([3.5, 3.0, 3.2, math.nan]))
    linked = records.assign(url="http://127.0.0.1:5000/#/runs/" + records["cell"])
    for runs, links in ((records, 0), (linked, 2)):
        (loss, *_) = figures(lines(curves(runs, GRID)))
        found = [layer["encoding"]["href"]["field"] for layer in loss.spec["layer"] if "href" in layer["encoding"]]
        assert found == ["url"] * links, "finished and diverged runs must have links"

"""Figures of all scales: which lines each one has, and what lies outside its frame."""

from __future__ import annotations

import math
from typing import Any

import pytest
from made_up import GRID, L_INIT, curve, run, study

from dashboards import published
from dashboards.all_scales import comparisons, multi_scale_figures
from dashboards.charts import Figure
from dashboards.files import save_figure
from dashboards.runs import read_csv
from dashboards.sensitivity import curves
from dashboards.views import COLORS, GREY, Line, lines

SCALES = ("tiny", "16M")


def drawn_of(*of: list[dict[str, object]]) -> list[Line]:
    return lines(curves(study(*of), GRID))


def at_two_scales(*losses: float, **changes: Any) -> list[dict[str, object]]:
    return [
        record for scale in SCALES for record in curve(list(losses or (3.5, 3.0, 3.2, 3.4)), scale=scale, **changes)
    ]


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


@pytest.fixture(scope="module")
def of_published() -> tuple[dict[str, Figure], dict[str, Figure]]:
    main, sweeps = multi_scale_figures(lines(curves(read_csv(published.RUNS_CSV))))
    return by_name(main), by_name(sweeps)


def test_the_published_main_comparison(of_published: tuple[dict[str, Figure], dict[str, Figure]]) -> None:
    main, _ = of_published
    assert list(main) == ["loss-scales", "lrs-scale"]
    facts = main["loss-scales"].spec["datasets"]["facts"]
    assert len(facts) == 140, "expected the published comparison, which has one gamma each of z-loss and mu-loss"
    assert {row["label"] for row in facts} == set(published.METHODS)
    color = main["loss-scales"].spec["layer"][0]["encoding"]["color"]["scale"]
    assert dict(zip(color["domain"], color["range"], strict=True)) == {name: COLORS[name] for name in published.METHODS}
    assert "z-loss and mu-loss are shown at gamma=0.0001." in main["loss-scales"].caption
    assert {row["scale"]: row["size"] for row in main["lrs-scale"].spec["datasets"]["facts"]} == {
        "16M": 16e6, "29M": 29e6, "57M": 57e6, "109M": 109e6, "221M": 221e6
    }  # fmt: skip
    for row in main["lrs-scale"].spec["datasets"]["facts"]:
        gamma = published.GAMMA if row["method"] in ("z-loss", "mu-loss") else None
        place = published.CURVES.index((row["method"], gamma))
        assert f"{row['LRS']:.3f}" == f"{published.LRS[row['scale']][place]:.3f}"


def test_the_published_sweeps_share_the_baseline(of_published: tuple[dict[str, Figure], dict[str, Figure]]) -> None:
    _, sweeps = of_published
    assert list(sweeps) == ["loss-scales-z-loss", "lrs-scale-z-loss", "loss-scales-mu-loss", "lrs-scale-mu-loss"]
    assert sweeps["lrs-scale-z-loss"].title == "LRS over scale, z-loss by gamma"
    names = ["baseline", "gamma=1e-07", "gamma=0.0001", "gamma=0.1", "gamma=100"]
    for name in ("loss-scales-z-loss", "loss-scales-mu-loss"):
        facts = sweeps[name].spec["datasets"]["facts"]
        assert len(facts) == 5 * 5 * 7
        color = sweeps[name].spec["layer"][0]["encoding"]["color"]["scale"]
        assert color["domain"] == names
        assert len(set(color["range"])) == len(names)
        assert color["range"][0] == GREY


def test_the_frame_leaves_out_points_that_would_flatten_the_curves() -> None:
    flat, high = at_two_scales(3.1, 3.0, 3.1, 3.2), at_two_scales(3.1, 3.0, 3.1, 6.0, method="mu-centering")
    (figure, *_), _ = multi_scale_figures(drawn_of(flat, high))
    low, top = figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low < 3.0
    assert 3.2 < top < 6.0
    assert "2 of 16 points lie above the frame, up to 6.00." in figure.caption
    (whole, *_), _ = multi_scale_figures(drawn_of(flat))
    assert "frame" not in whole.caption


def test_a_diverged_cell_is_never_outside_the_frame() -> None:
    (figure, *_), _ = multi_scale_figures(
        drawn_of(at_two_scales(), at_two_scales(3.5, 3.0, 3.2, math.nan, method="max-z"))
    )
    _, top = figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert top > L_INIT
    assert "Crosses at l_init mark diverged cells: 2 of 16." in figure.caption
    assert figure.spec["layer"][2]["encoding"]["y"]["field"] == "l_init"


def test_points_are_means_over_seeds() -> None:
    seeds = [at_two_scales(3.5, 3.0, 3.2, last, seed=s) for s, last in enumerate((3.0, 4.0, math.nan))]
    seeds[1][0] |= {"state": "crashed", "val_loss": None}
    (figure, *_), _ = multi_scale_figures(drawn_of(*seeds))
    facts = figure.spec["datasets"]["facts"]
    assert len(facts) == 8
    assert facts[0] | {"l_init": 0} == {
        "scale": "tiny", "label": "baseline", "lr": 1e-3, "loss": None, "seeds": 2, "diverged": 0, "l_init": 0
    }  # fmt: skip
    assert (facts[-1]["loss"], facts[-1]["diverged"]) == (pytest.approx((3.0 + 4.0 + L_INIT) / 3), 1)
    assert "Points are means over seeds." in figure.caption


def test_without_a_mean_there_is_no_loss_figure() -> None:
    records = at_two_scales(seed=1) + [
        record | {"state": "running", "val_loss": None} for record in at_two_scales(seed=2)
    ]
    assert multi_scale_figures(drawn_of(records)) == ([], [])


def test_equal_losses_have_a_frame() -> None:
    (figure, *_), _ = multi_scale_figures(drawn_of(at_two_scales(3.0, 3.0, 3.0, 3.0)))
    low, top = figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low < 3.0 < top


def test_a_single_scale_has_no_multi_scale_figure() -> None:
    assert multi_scale_figures(drawn_of(curve([3.5, 3.0, 3.2, 3.4]))) == ([], [])
    assert multi_scale_figures([]) == ([], [])


def test_scales_that_are_not_parameter_counts_are_ordinal() -> None:
    main, _ = multi_scale_figures(drawn_of(at_two_scales()))
    x = by_name(main)["lrs-scale"].spec["layer"][0]["encoding"]["x"]
    assert (x["field"], x["type"], x["sort"]) == ("scale", "ordinal", list(SCALES))


def test_attention_norms_are_not_mixed() -> None:
    both = [
        at_two_scales(attention_norm=norm, method=method)
        for norm in ("none", "qk-norm")
        for method in ("baseline", "mu-centering")
    ]
    main, sweeps = multi_scale_figures(drawn_of(*both))
    assert [figure.title for figure in main if figure.section == "lrs"] == [
        "LRS over scale, none",
        "LRS over scale, qk-norm",
    ]
    assert not sweeps
    for figure in main:
        assert len(figure.spec["datasets"]["facts"]) in (4, 16), "expected two methods at two scales"


def test_colors_show_the_norm_if_norms_are_compared() -> None:
    main, _ = multi_scale_figures(drawn_of(*(at_two_scales(attention_norm=norm) for norm in ("none", "qk-norm"))))
    assert "Colors show the attention norm" in main[0].caption


@pytest.mark.parametrize(
    ("gammas", "chosen"),
    [((1e-4, 0.1), 1e-4), ((0.1, 1.0), 0.1), ((1e-6, 1e-3), 1e-3), ((0.0, 100.0), 100.0), ((5.0,), 5.0)],
)
def test_the_gamma_nearest_to_the_default_is_compared(gammas: tuple[float, ...], chosen: float) -> None:
    main, sweeps = comparisons(drawn_of(*(at_two_scales(method="z-loss", gamma=gamma) for gamma in gammas)))
    assert {line.curve.gamma for line in main[0].lines} == {chosen}
    assert len(sweeps) == (len(gammas) > 1)


def test_a_gamma_at_every_scale_takes_precedence_over_the_default() -> None:
    default = curve([3.5, 3.0, 3.2, 3.4], method="z-loss", gamma=1e-4)
    main, _ = comparisons(drawn_of(at_two_scales(method="z-loss", gamma=10.0), default))
    assert {line.curve.gamma for line in main[0].lines} == {10.0}


def test_a_cap_is_named_by_its_symbol() -> None:
    caps = [at_two_scales(method="soft-cap", gamma=cap) for cap in (10.0, 30.0)]
    main, (sweep,) = comparisons(drawn_of(*caps))
    assert main[0].note == "soft-cap is shown at c=30."
    assert list(dict.fromkeys(line.name for line in sweep.lines)) == ["c=10", "c=30"]


def test_studies_keep_their_own_lines() -> None:
    of = [at_two_scales(study=name, method="z-loss", gamma=gamma) for name in "AB" for gamma in (1e-4, 0.1)]
    main, sweeps = comparisons(drawn_of(*of))
    assert list(dict.fromkeys(line.name for line in main[0].lines)) == ["A: z-loss", "B: z-loss"]
    assert len({(line.color, line.dash, line.shape) for line in main[0].lines}) == 2
    assert [sweep.name for sweep in sweeps] == ["A: z-loss", "B: z-loss"]


def test_each_sweep_has_the_baseline_of_its_factors() -> None:
    of = [
        at_two_scales(3.5 + wd, 3.0, 3.2, 3.4, factors=f'{{"wd": {wd}}}', **method)
        for wd in (0.0, 0.5)
        for method in ({}, {"method": "z-loss", "gamma": 1e-4}, {"method": "z-loss", "gamma": 0.1})
    ]
    _, sweeps = comparisons(drawn_of(*of))
    assert len(sweeps) == 2
    for sweep in sweeps:
        assert len({line.curve.factors for line in sweep.lines}) == 1
        assert sum(line.name == "baseline" for line in sweep.lines) == len(SCALES)


def test_the_axis_is_named() -> None:
    of_eps = [
        run(lr_factor="training.eps", factors=f'{{"training.eps": {eps}}}', val_loss=loss, scale=scale)
        for scale in SCALES
        for eps, loss in zip(GRID, (3.5, 3.0, 3.2, 3.4), strict=True)
    ]
    (losses, lrs), _ = multi_scale_figures(drawn_of(of_eps))
    assert losses.title == "Final loss over eps, all scales"
    assert losses.spec["layer"][0]["encoding"]["x"]["title"] == "eps"
    assert lrs.caption.startswith("Lower is less sensitive to the eps.")


def test_each_of_many_gammas_has_its_own_shape() -> None:
    of = [at_two_scales(method="z-loss", gamma=10.0**power) for power in range(-5, 3)]
    _, (sweep,) = comparisons(drawn_of(*of))
    assert len({line.shape for line in sweep.lines}) == 8


def test_a_curve_without_lrs_is_only_in_the_loss_figure() -> None:
    broken = at_two_scales(method="mu-centering")
    broken[0] |= {"state": "crashed", "val_loss": None}
    main, _ = multi_scale_figures(drawn_of(at_two_scales(), broken))
    facts = {figure.name: figure.spec["datasets"]["facts"] for figure in main}
    assert len(facts["loss-scales"]) == 15
    assert [(row["label"], row["scale"]) for row in facts["lrs-scale"]] == [
        ("baseline", "tiny"), ("baseline", "16M"), ("mu-centering", "16M")
    ]  # fmt: skip


def test_a_file_names_methods_and_scales(tmp_path: Any) -> None:
    (figure, *_), _ = multi_scale_figures(drawn_of(at_two_scales(), at_two_scales(method="max-z")))
    for path in save_figure(figure, tmp_path, ["svg"]):
        svg = path.read_text()
        for name in ("baseline", "max-z", *SCALES):
            assert f">{name}</text>" in svg, f"{path.name} has no legend entry {name}"

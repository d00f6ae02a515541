"""Loss against sensitivity: Vega draws rings around the curves that no other curve beats in both."""

from __future__ import annotations

import math
import re

import pytest
import vl_convert
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import GRID, curve, study

from dashboards.charts import VEGA_LITE
from dashboards.pareto import pareto_facts, pareto_figures
from dashboards.sensitivity import curves
from dashboards.views import lines, views

GAMMAS = (1e-4, 1e-3, 1e-2, 1e-1)
UNIQUE = st.permutations(range(4))


def figure_of(*records: list[dict[str, object]]) -> list:
    return list(pareto_figures(views(lines(curves(study(*records), GRID)))))


def marks(spec: dict[str, object], name: str) -> int:
    """Returns the number of marks that Vega draws for the layer of this role."""
    svg = vl_convert.vegalite_to_svg(spec | {"width": 300}, vl_version=VEGA_LITE)
    return len(re.findall(name, svg))


@settings(max_examples=15, deadline=None)
@given(UNIQUE, UNIQUE)
def test_the_rings_are_the_front(heights: list[int], losses: list[int]) -> None:
    points = [(0.1 * (1 + height), 3.0 + 0.1 * loss) for height, loss in zip(heights, losses, strict=True)]
    front = [not any(x < a and y < b for x, y in points) for a, b in points]
    records = [
        curve([loss, loss + lrs, loss + lrs, loss + lrs], method="z-loss", gamma=gamma)
        for (lrs, loss), gamma in zip(points, GAMMAS, strict=True)
    ]
    (figure,) = figure_of(*records)
    ring = figure.spec["layer"][-1]["mark"]
    assert ring["size"] == 220
    figure.spec["layer"][-1]["mark"] = ring | {"color": "#123456"}
    assert marks(figure.spec, 'stroke="#123456"') == sum(front)


def test_the_facts_have_both_intervals() -> None:
    records = [curve([3.5, 3.0 + seed / 100, 3.2, math.nan], seed=seed) for seed in range(3)]
    (fact,) = pareto_facts(lines(curves(study(*records), GRID))).to_dict("records")
    assert fact["best_lr"] == 1e-2
    assert fact["best_loss"] == pytest.approx(3.01)
    assert fact["loss_low"] < 3.01 < fact["loss_high"]
    assert fact["low"] < fact["LRS"] < fact["high"]


def test_one_curve_has_no_front_and_an_incomplete_curve_has_no_point() -> None:
    good, other = curve([3.5, 3.0, 3.2, 3.4]), curve([3.5, 3.0, 3.2, 3.4], method="mu-centering")
    assert figure_of(good) == []
    assert figure_of(good, other[:3]) == []
    (figure,) = figure_of(good, other)
    assert figure.name == "pareto-tiny"
    assert "intervals" not in figure.caption, "one seed has no intervals"
    low, high = figure.spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert low < high, "equal curves still need an axis"


def test_curves_of_one_seed_are_in_the_frame() -> None:
    one_seed = [curve([loss, 3.0, 3.2, 3.4], method=method) for loss, method in ((3.5, "max-z"), (4.4, "baseline"))]
    found = [figure_of(*one_seed)[0], *figure_of(*one_seed, curve([3.6, 3.0, 3.2, 3.4], method="max-z", seed=2))]
    for figure in found:
        facts, x = figure.spec["datasets"]["facts"], figure.spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
        values = [fact["LRS"] for fact in facts]
        assert x[0] <= min(values) <= max(values) <= x[1]
    domain = found[0].spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert domain == pytest.approx([1.1 / 3, 2.0 / 3]), "without intervals, the frame must fit the values"


def test_wide_intervals_do_not_squeeze_the_points() -> None:
    records = [
        curve([3.9, best + 0.3 * seed, 3.6, 3.9], seed=seed, method=method)
        for method, best in (("baseline", 3.0), ("mu-centering", 3.1))
        for seed in range(2)
    ]
    (figure,) = figure_of(*records)
    low, high = figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert high - low == pytest.approx(0.3), "the axis must span three times the difference of the two losses"
    assert "95% intervals" in figure.caption

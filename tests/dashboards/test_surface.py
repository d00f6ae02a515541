"""The loss surface over learning rate and gamma, for known functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dashboards.factors import on_axis
from dashboards.files import save_figure
from dashboards.interpolation import surface
from dashboards.runs import from_records
from dashboards.sensitivity import curves, ended_runs
from dashboards.surface import start_surfaces, surface_points
from dashboards.views import lines, views


def bowl(lr: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Returns a bowl whose minimum is 3, at lr 1e-2 and gamma 1e-1."""
    return 3 + 0.2 * (np.log10(lr) + 2) ** 2 + 0.1 * (np.log10(gamma) + 1) ** 2


def sampled(lrs: np.ndarray, gammas: np.ndarray) -> pd.DataFrame:
    lr, gamma = (axis.ravel() for axis in np.meshgrid(lrs, gammas))
    return pd.DataFrame({"lr": lr, "gamma": gamma, "loss": bowl(lr, gamma)})


def middles(found: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.sqrt(found[name] * found[f"{name}_to"]).to_numpy() for name in ("lr", "gamma"))


def test_a_known_bowl_is_recovered_from_grid_and_scattered_points() -> None:
    rng = np.random.default_rng(0)
    scattered = pd.DataFrame({"lr": 10 ** rng.uniform(-4, 0, 60), "gamma": 10 ** rng.uniform(-4, 2, 60)})
    scattered["loss"] = bowl(scattered["lr"].to_numpy(), scattered["gamma"].to_numpy())
    points = pd.concat([sampled(np.logspace(-4, 0, 9), np.logspace(-4, 2, 7)), scattered])
    found = pd.DataFrame(surface(*points.to_numpy().T))
    assert len(found) == 48 * 48, "the hull is the whole box"
    lr, gamma = middles(found)
    assert np.abs(found["loss"].to_numpy() - bowl(lr, gamma)).max() < 0.06, "the error is too large for a range of 1.7"
    lowest = int(found["loss"].to_numpy().argmin())
    assert abs(np.log10(lr[lowest]) + 2) < 0.3
    assert abs(np.log10(gamma[lowest]) + 1) < 0.6


def test_a_plane_is_exact_and_not_extrapolated() -> None:
    points = pd.DataFrame({"lr": [1e-3, 1e-1, 1e-3], "gamma": [1e-2, 1e-2, 1.0]})
    points["loss"] = 3 + np.log10(points["lr"]) - 2 * np.log10(points["gamma"])
    found = pd.DataFrame(surface(*points.to_numpy().T))
    lr, gamma = middles(found)
    assert found["loss"].to_numpy() == pytest.approx(3 + np.log10(lr) - 2 * np.log10(gamma))
    assert len(found) == pytest.approx(48 * 48 / 2, rel=0.05), "the triangle covers half of the box"


@pytest.mark.parametrize("points", [[(1e-3, 1.0)], [(1e-3, 1.0), (1e-2, 1.0), (1e-1, 1.0)]])
def test_points_on_a_line_have_no_surface(points: list[tuple[float, float]]) -> None:
    lr, gamma = np.array(points).T
    assert not surface(lr, gamma, np.full(len(points), 3.0))["loss"].size


def test_ended_runs_are_drawn(tmp_path: Path) -> None:
    records = [
        {
            "study": "s",
            "cell": f"{lr}-{gamma}",
            "scale": "tiny",
            "attention_norm": "qk-norm",
            "method": "z-loss",
            "gamma": gamma,
        }
        | {"lr": lr, "seed": 1, "state": "finished", "val_loss": 3.0 + lr, "l_init": 7.0, "origin": "grid"}
        for lr in (1e-3, 1e-2)
        for gamma in (0.1, 1.0)
    ]
    refined = records[0] | {"cell": "refined", "lr": 5e-3, "gamma": 0.3, "origin": "refine"}
    diverged = records[0] | {"cell": "diverged", "lr": 1e-1, "state": "diverged", "val_loss": None}
    pruned = records[0] | {"cell": "pruned", "lr": 5e-1, "gamma": 0.3, "state": "pruned", "origin": "refine"}
    runs = from_records([*records, refined, diverged, pruned])
    found = surface_points(ended_runs(on_axis(runs)), "tiny", "qk-norm", "z-loss").set_index("cell")
    assert set(found.index) == {record["cell"] for record in records} | {"refined", "diverged"}
    assert found.loc["diverged", "loss"] == 7.0
    (figure,) = start_surfaces(runs, views(lines(curves(runs, (1e-3, 1e-2)))))()
    assert figure.title == "Loss over learning rate and gamma, z-loss"
    assert (figure.name, figure.view) == ("surface-z-loss-tiny", "tiny")
    assert len(save_figure(figure, tmp_path)) == 6, "expected three formats in two widths"

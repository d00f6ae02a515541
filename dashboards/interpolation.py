"""Interpolates the loss over learning rate and gamma between the cells that were trained.

The interpolation is linear on a Delaunay triangulation in (log lr, log gamma): it passes through every point, does not
extrapolate beyond their hull, and works for a grid and for scattered refinements.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError

CELLS_PER_AXIS = 48
"""Cells of the interpolated surface along each axis."""


Floats = npt.NDArray[np.float64]


def surface(lr: Floats, gamma: Floats, losses: Floats, side: int = CELLS_PER_AXIS) -> dict[str, Floats]:
    """The loss, interpolated on ``side`` x ``side`` cells spaced evenly in log lr and log gamma.

    Args:
        lr, gamma: the distinct points, both positive; shape ``(point,)``.
        losses: at these points.

    Returns:
        Columns lr, lr_to, gamma, gamma_to (the borders of a cell) and loss (at its center). A cell outside the hull of
        the points has no row; the columns are empty if the points span no area.
    """
    places = np.log10(np.stack([lr, gamma], axis=1))
    borders = [np.linspace(low, high, side + 1) for low, high in zip(places.min(0), places.max(0), strict=True)]
    middle = np.stack(np.meshgrid(*((b[1:] + b[:-1]) / 2 for b in borders), indexing="ij"), axis=-1)
    try:
        loss = LinearNDInterpolator(places, losses, rescale=True)(middle)
    except QhullError:  # fewer than three points, or all on one line
        return {name: np.empty(0) for name in ("lr", "lr_to", "gamma", "gamma_to", "loss")}
    low = np.stack(np.meshgrid(*(10 ** b[:-1] for b in borders), indexing="ij"), axis=-1)
    high = np.stack(np.meshgrid(*(10 ** b[1:] for b in borders), indexing="ij"), axis=-1)
    columns = {"lr": low[..., 0], "lr_to": high[..., 0], "gamma": low[..., 1], "gamma_to": high[..., 1], "loss": loss}
    inside = ~np.isnan(loss)
    return {name: values[inside] for name, values in columns.items()}

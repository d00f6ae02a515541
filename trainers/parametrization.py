"""How initial values, learning rates and logits depend on the width of the model.

The standard parametrization is that of the published code. mup (arXiv 2203.03466, table 8, for Adam) keeps the size of
every activation, and of its change in a step, independent of the width, and so the best learning rate. Relative to the
standard parametrization of a base scale, with r the ratio of a width to the base's:

  matrices of the blocks   initial variance and Adam's learning rate 1 / r, where r is of the number of inputs
  embedding, E             initial variance and learning rate of the base
  output logits            times 1 / r of the model width
  attention logits         ``q . k / K`` times the square root of the base's K, because q and k align in training
  norms and factors        as they are

Muon's learning rate has no factor: an update of a given spectral norm changes the outputs equally at every width.
Depth is not part of mup. The standard parametrization is mup with the scale itself as its base.

Legend: D model width, F width of the SwiGLU, K width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from search_spaces.scales import Scale


@dataclass(frozen=True)
class Widths:
    """Ratios of the widths of a scale to those of the base."""

    D: float
    F: float
    K: float

    @classmethod
    def of(cls, scale: Scale, base: Scale) -> Widths:
        return cls(scale.D / base.D, scale.hidden / base.hidden, (scale.D / scale.H) / (base.D / base.H))


class HiddenMatrix(NamedTuple):
    """The weight of a linear layer of a block."""

    weight: Tensor
    """A parameter."""
    parts: int
    """Number of matrices in the weight, stacked along the outputs."""
    width: float
    """Ratio of its number of inputs to the base's."""

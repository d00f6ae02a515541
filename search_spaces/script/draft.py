"""A draft of a study: what a training script reveals, and what a person has to fill in."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

GRID = (0.1, 1 / 3, 1.0, 3.0, 10.0)
"""Learning rates to try, as multiples of the script's own."""
USUAL_LR = 1e-3
"""The middle of the grid for a script whose own learning rate is not known: AdamW's usual one."""


class Found(NamedTuple):
    """A fact about the script, for the summary that is printed."""

    what: str
    value: str
    remark: str = ""


class Missing(NamedTuple):
    """What a person has to decide, or should know."""

    what: str
    how: str
    blocks: bool = False
    """Whether the study cannot run without it."""


class Suggestion(NamedTuple):
    """A factor to try."""

    name: str
    values: tuple[Any, ...]
    words: str
    """What to add to the command: ``--weight_decay {weight_decay}``."""


@dataclass(frozen=True)
class Draft:
    """What a study for a training script says. Paths are relative to ``directory``, where the script is started."""

    directory: Path
    trainer: dict[str, Any]
    """Fields of ``trainer``, apart from the directory."""
    lrs: tuple[float, ...]
    seeds: int
    found: tuple[Found, ...]
    missing: tuple[Missing, ...]
    own_lr: float | None = None
    """The script's own learning rate."""
    required_factors: tuple[str, ...] = ()
    """Factors without which the script does not run."""
    suggestions: tuple[Suggestion, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the study can run as it is."""
        return not any(missing.blocks for missing in self.missing)


def lr_grid(center: float) -> tuple[float, ...]:
    """Five learning rates, factors of about 3 apart, with one or two digits: 6e-5, 2e-4, 6e-4, 2e-3, 6e-3 for 6e-4."""
    return tuple(float(center) if factor == 1 else _rounded(center * factor) for factor in GRID)


def _rounded(value: float) -> float:
    digits = 1 if value / 10 ** math.floor(math.log10(value)) >= 1.75 else 2
    return float(f"{value:.{digits - 1}e}")


def relative(path: Path, directory: Path) -> str:
    """A path as a study writes it."""
    return Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()


def inside(paths: list[Path], directory: Path) -> list[str]:
    """The paths that are in the folder, once each: files elsewhere cannot be part of a study's identity."""
    names = dict.fromkeys(relative(path, directory) for path in paths)
    return [name for name in names if not name.startswith("..")]

"""Small cells and tokens for the tests in this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.cell import Cell
from search_spaces.methods import METHODS
from search_spaces.training_spec import ModelSpec, TrainingSpec
from trainers.data import Shards, Tokens, write_shard

V = 256
T = 32
CAUTIOUS: dict[str, Any] = {"weight_decay": 1e-2, "cautious_weight_decay": True}
MUP: dict[str, Any] = {"parametrization": "mup", "mup_base": "nano"}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "cautious": CAUTIOUS,
    "muon": {"optimizer": "muon", "muon_lr_ratio": 3.0, "weight_decay": 0.1, "weight_decay_mode": "coupled"},
    "cautious muon": {"optimizer": "muon"} | CAUTIOUS,
    "mup": MUP | {"weight_decay": 1e-2},
    "mup of muon": MUP | {"optimizer": "muon"},
}
"""Fields of ``training``."""


def tokens(folder: Path) -> Tokens:
    """Writes a cyclic text with noise, from which a tiny model learns something in 20 steps."""
    for name, n in (("train", 20_000), ("validation", 2_000)):
        generator = np.random.default_rng(len(name))
        text = np.where(generator.random(n) < 0.2, generator.integers(0, V, n), np.arange(n) % 50)
        write_shard(folder / f"{name}.bin", text.astype(np.uint16))
    return opened(folder)


def opened(folder: Path) -> Tokens:
    train, validation = (Shards((folder / f"{name}.bin",)) for name in ("train", "validation"))
    return Tokens(train=train, validation=validation, vocab_size=V, V=V, digest="test")


def cell(
    method: str = "baseline",
    gamma: float | None = None,
    *,
    lr: float = 3e-3,
    seed: int = 1,
    scale: str = "tiny",
    model: ModelSpec | None = None,
    **training: Any,
) -> Cell:
    defaults: dict[str, Any] = {
        "steps": 8,
        "batch_size": 4,
        "sequence_length": T,
        "warmup_steps": 2,
        "precision": "float32",
        "eval_sequences": 4,
    }
    return Cell(
        scale=scale,
        method=method,
        gamma=gamma,
        lr=lr,
        seed=seed,
        data="test",
        V=V,
        model=model or ModelSpec(),
        training=TrainingSpec(**(defaults | training)),
    )


def of(method: str = "baseline", factor: float = 1.0, attention_norm: str = "qk-norm", **fields: Any) -> Cell:
    """Returns a tiny cell with its method's default gamma times ``factor``."""
    default = METHODS[method].default_gamma
    this = cell(method, default and factor * default, **fields)
    return this.model_copy(update={"attention_norm": attention_norm})


def batches(this: Cell, steps: int) -> list[NDArray[np.uint16]]:
    """Returns random tokens for some steps of a cell, each ``(B, T + 1)``."""
    shape = (steps, this.training.batch_size, this.training.sequence_length + 1)
    return list(np.random.default_rng(0).integers(0, this.V, shape, dtype=np.uint16))

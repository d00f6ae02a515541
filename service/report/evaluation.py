"""The loss of kept weights on tokens other than those of their run."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file

from trainers.data import Shards
from trainers.engine import Engine, shape_key
from trainers.numerics import flush_denormals
from trainers.weights import KeptWeights
from trainers.world import World

PASS_TOKENS = 4096
"""Tokens per forward pass."""
READ_SEQUENCES = 256
"""Sequences in memory at a time."""


class Evaluator:
    """Evaluates files of weights one after another. Consecutive files of the same shape share an engine."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._world = World.single("cuda" if torch.cuda.is_available() else "cpu")
        self._engine: Engine | None = None

    @flush_denormals()
    def __call__(self, kept: KeptWeights, sequences: int | None = None) -> tuple[float, int]:
        """The mean cross-entropy over the first sequences, computed as in the run's validation, and the number of
        tokens.

        Args:
            sequences: how many; default: as many as the run's validation.
        """
        cell = kept.cell
        if self._engine is None or self._engine.key != shape_key(cell):
            self._engine = Engine(cell, self._world, compile=False)
        engine = self._engine
        engine.reset(cell)
        engine.objective.model.load_state_dict(load_file(kept.path, device=str(self._world.device)))
        T, count = cell.training.sequence_length, sequences or cell.training.eval_sequences
        total = 0.0
        for start in range(0, count, READ_SEQUENCES):
            windows = range(start, min(count, start + READ_SEQUENCES))
            tokens_NU = torch.from_numpy(self._shards.read(windows, T).astype(np.int64)).to(self._world.device)
            total += len(windows) * engine.loss(tokens_NU, max(1, PASS_TOKENS // T))
        return total / count, count * T

"""A home with a small study that was trained in the test's process, without Ray, and kept its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.plan import Plan
from search_spaces.study import Study
from service.home import copies
from service.home.layout import Home
from service.home.studies import register_study, write_ledger
from trainers import weights
from trainers.data import Shards, Tokens, write_shard
from trainers.loop import Trainer
from trainers.world import World

V, T = 256, 16


def shards(folder: Path) -> Tokens:
    """Writes random tokens to ``train.bin`` and ``validation.bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", 5000), ("validation", 1000)):
        write_shard(folder / f"{name}.bin", np.random.default_rng(len(name)).integers(0, V, count, dtype=np.uint16))
    train, validation = (Shards((folder / f"{name}.bin",)) for name in ("train", "validation"))
    return Tokens(train=train, validation=validation, vocab_size=V, V=V, digest="random")


def study_of(name: str = "kept", **changes: Any) -> Study:
    training = {"steps": 6, "batch_size": 4, "sequence_length": T, "warmup_steps": 1, "precision": "float32"}
    fields = {
        "name": name,
        "scales": ["tiny"],
        "data": {"vocab_size": V},
        "methods": ["baseline", "mu-centering"],
        "lrs": [1e-2, 1e-1],
        "training": training | {"eval_sequences": 8},
        "keep_weights": "last",
    }
    return Study.validate_fields(fields | changes)


def train(home: Home, study: Study, tokens: Tokens, trainer: Trainer | None = None) -> Study:
    """Trains the study, doing what a driver and its workers would do."""
    trainer = trainer or Trainer(World.single(), tokens)
    register_study(home, study)
    with write_ledger(home, study.name) as ledger:
        ledger.plan(Plan(study, tokens.digest).cells)
        for cell in ledger.missing():
            folder = home.workplace(cell.id, study.name)
            result = trainer.run(
                cell,
                folder,
                evaluate_every=3,
                checkpoint_every=3,
                keep_weights=study.keep_weights,
                mirror=copies.mirror(home, folder, home.cell(cell.id, study.name), archive=weights.FOLDER),
            )
            ledger.end(cell.id, result)
    return study

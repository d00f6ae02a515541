"""The studies into which faults are injected, and their undisturbed results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import yaml

from benchmarks.study_run import NAME, STEPS
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.home.data import prepare_tokens
from service.home.layout import Home
from service.home.location import open_home
from tests.trainers.pair import joined
from trainers.loop import Trainer
from trainers.world import World

Losses = dict[str, float | None]


def cells(folder: Path, steps: int, workers: int = 2, lrs: Sequence[float] = (1e-3, 2e-3)) -> Path:
    """Writes a study whose cells run one at a time, with one worker or two DDP workers. 500 steps take about 10 s."""
    training = {**Study.load("smoke").training.model_dump(mode="json"), "steps": steps}
    changes = {"name": NAME, "methods": ["baseline"], "lrs": list(lrs), "training": training}
    changes |= {"intervals": {"evaluate": 100, "checkpoint": 50}, "resources": {"workers": workers, "concurrency": 1}}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(Study.load("smoke").to_yaml()), "refine": 0, **changes}))
    return path


def without_ray(file: Path, folder: Path) -> Losses:
    """Trains a study without Ray, in as many processes as it has workers. Returns the losses by cell."""
    study, home = Study.load(str(file)), open_home(folder)
    prepare_tokens(study, home, print)  # tokenized once here, so that the processes do not all do it
    if study.resources.workers == 1:
        rank_of(0, study, home)
    else:
        mp.spawn(rank_of, (study, home), nprocs=study.resources.workers)
    losses: Losses = json.loads((folder / "losses.json").read_text())
    return losses


def rank_of(rank: int, study: Study, home: Home) -> None:
    torch.set_num_threads(1)
    tokens = prepare_tokens(study, home, print)
    with joined(rank, home.path) if study.resources.workers == 2 else nullcontext(World.single()) as world:
        trainer = Trainer(world, tokens)
        planned = Plan(study, tokens.digest).cells
        every = {
            "evaluate_every": study.evaluate_every(planned[0]),
            "checkpoint_every": study.checkpoint_every(planned[0]),
        }
        losses = {cell.id: trainer.run(cell, home.path / cell.id, **every).val_loss for cell in planned}
    if rank == 0:
        (home.path / "losses.json").write_text(json.dumps(losses))


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cells(tmp_path_factory.mktemp("study"), STEPS)


@pytest.fixture(scope="session")
def undisturbed(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    return without_ray(study, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def long_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a longer study, for faults during which a node or a server has to start."""
    return cells(tmp_path_factory.mktemp("long-study"), 900)


@pytest.fixture(scope="session")
def long_undisturbed(long_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    return without_ray(long_study, tmp_path_factory.mktemp("long-undisturbed"))

"""What the worker groups of a study train with: our own model, a command, or a Python object."""

from __future__ import annotations

from search_spaces.study import Study
from service.home import copies
from service.home.layout import Home
from service.sweep.worker_group import GroupConfig
from trainers.command.supervisor import STUCK_S
from trainers.command.trial import CommandTrial
from trainers.data import TokenFiles, Tokens
from trainers.oec_trial import OecTrial
from trainers.protocol import ServedTrial
from trainers.python_trial import PythonTrial


def group_config(study: Study, tokens: Tokens | None, home: Home) -> GroupConfig:
    """
    Args:
        tokens: what the OEC model is trained on; None for a study with a trainer.
    """
    return GroupConfig(
        trial=make_trial(study, tokens, home),
        resources=study.group_resources,
        processes=study.resources.workers,
        study_folder=home.study(study.name),
        ray_folder=home.ray,
        end_s=study.trainer.grace_s + STUCK_S if study.trainer else 0.0,
        on_device=study.trainer is None or study.trainer.kind == "python",
    )


def make_trial(study: Study, tokens: Tokens | None, home: Home) -> ServedTrial:
    if study.trainer is not None:
        return CommandTrial(study.trainer) if study.trainer.kind == "command" else PythonTrial(study.trainer)
    assert tokens is not None, "a study of the OEC model has tokens"
    return OecTrial(
        TokenFiles.of(tokens, copies.mirror(home, tokens.folder) if tokens.folder else None),
        compile=study.resources.compile,
        micro_batch_memo=home.micro_batches,
    )


def describe_group(study: Study) -> str:
    """What trains a cell, for people."""
    workers = study.resources.workers
    if study.trainer is None:
        each = "1 worker each, which stays" if workers == 1 else f"{workers} DDP workers each, which stay"
        return f"{each} warm between cells"
    if study.trainer.kind == "python":
        each = "1 worker each, which keeps" if workers == 1 else f"{workers} workers each, which keep"
        return f"{each} {study.trainer.python} warm between cells"
    nodes = f" on each of {study.trainer.nodes} nodes" if study.trainer.nodes > 1 else ""
    return f"each the command {study.trainer.name}{nodes}, with the resources of {workers} worker{'s' * (workers > 1)}"

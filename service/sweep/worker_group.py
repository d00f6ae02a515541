"""A warm worker group: one Ray Train run that trains cell after cell.

The group belongs to the process of a Tune trial actor. Tune reuses the actor for many trials, and with it the group,
which ``group_of_this_process`` returns.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train

from search_spaces.resources import ResourceSpec
from service.sweep.mailbox import Mailbox
from trainers.job import Event, Job, result_in
from trainers.protocol import ServedTrial

POLL_S = 1.0
"""How often a trial checks whether its group is alive."""
AGREEMENT_S = 120.0
"""How long the ranks of a group wait for each other, besides the time that it takes one of them to end its command."""
CLOSE_S = 60.0
"""How long to wait for a group to end; it takes about one second on two idle cores."""


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """The configuration of a group; trials with equal configurations share a group."""

    trial: ServedTrial
    """What every worker sets up and trains cells with."""
    resources: ResourceSpec
    """Those of the group: one Ray worker for each of ``workers``."""
    processes: int
    """Training processes of a cell: more than the group's workers where a command starts them itself."""
    study_folder: Path
    ray_folder: Path
    end_s: float = 0.0
    """How long a command may take to end, in which its node's worker answers no other."""
    on_device: bool = True
    """Whether the workers themselves use the devices, rather than a command that they start."""


class GroupDied(RuntimeError):
    """The Ray Train run ended without being closed."""


class WarmGroup:
    """A running ``TorchTrainer`` and its mailbox."""

    def __init__(self, config: GroupConfig) -> None:
        self.config = config
        self.name = f"group-{uuid.uuid4().hex[:8]}"
        self._mailbox = Mailbox.remote(config.resources.max_failures)  # type: ignore[attr-defined]
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, name=self.name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def reserve(self) -> bool:
        """Keep the group for another job; returns False if it is ending."""
        return self.alive and bool(ray.get(self._mailbox.reserve.remote()))

    def run(self, job: Job) -> Iterator[list[Event]]:
        """Train one cell. Yields its events as they arrive, at last its result, and an empty list every ``POLL_S``.

        If the caller closes the generator (Tune ends a trial early), the cell is canceled.

        Raises:
            GroupDied: the group died and will not be restarted.
        """
        ray.get(self._mailbox.put.remote(job))
        done = False
        try:
            while not done:
                events = ray.get(self._mailbox.events.remote(POLL_S))
                done = result_in(events) is not None
                if not events and not self.alive:
                    raise GroupDied(f"{self.name} ended: {self._failure}") from self._failure
                yield events
        finally:
            if not done and self.alive:
                ray.get(self._mailbox.cancel.remote())

    def close(self) -> None:
        """Let the workers return and wait for the run to end, which frees its cores."""
        if ray.is_initialized() and self.alive:
            self._mailbox.close.remote()
            self._thread.join(CLOSE_S)

    def _fit(self) -> None:
        from ray.train.torch import TorchTrainer  # imports torch, which takes seconds

        from trainers.ray_worker import HostTorchConfig, WorkerConfig, serve_cells

        config, resources = self.config, self.config.resources
        trainer = TorchTrainer(
            serve_cells,  # type: ignore[arg-type]  # Ray asks for a dict; ours is a TypedDict
            train_loop_config=WorkerConfig(  # type: ignore[arg-type]
                mailbox=self._mailbox,
                trial=config.trial,
                folder=config.study_folder,
                threads=resources.cpus_per_worker,
                workers=config.processes,
                memory_share=resources.gpus_per_worker or 1.0,
                agreement_timeout_s=AGREEMENT_S + config.end_s,
            ),
            torch_config=None if config.on_device else HostTorchConfig(),
            scaling_config=scaling(resources, on_device=config.on_device),
            run_config=ray.train.RunConfig(
                name=self.name,
                storage_path=str(config.ray_folder),
                # The mailbox counts failures per cell, so the number of failures of a group is not limited.
                failure_config=ray.train.FailureConfig(max_failures=-1),
            ),
        )
        try:
            trainer.fit()
        except BaseException as failure:  # raised by the trial that waits for this group
            self._failure = failure


def scaling(resources: ResourceSpec, *, on_device: bool = True) -> ray.train.ScalingConfig:
    """What a group asks Ray for."""
    gpus = {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    return ray.train.ScalingConfig(
        num_workers=resources.workers,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker={"CPU": resources.cpus_per_worker} | gpus,
        # DDP: on one node if possible, otherwise on as few as possible. A command has one worker per node.
        placement_strategy="PACK" if on_device else "STRICT_SPREAD",
    )


_group: WarmGroup | None = None


def group_of_this_process(config: GroupConfig) -> WarmGroup:
    """The warm group of this process; a new one if there is none, if it is ending, or if its config differs."""
    global _group
    if _group and (_group.config != config or not _group.reserve()):
        close_group()
    if _group is None:
        _group = WarmGroup(config)
    return _group


def close_group() -> None:
    """End the warm group of this process, if it has one.

    Otherwise a group outlives the process that owns it by seconds, in which Ray Train may restart it, and then nothing
    frees its cores.
    """
    global _group
    if _group:
        _group.close()
        _group = None

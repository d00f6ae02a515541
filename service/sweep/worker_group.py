"""A warm worker group: one Ray Train run that trains cell after cell.

It lives in the process of a Tune trial actor. Tune reuses that actor from trial to trial, and the group with it;
``group_of_this_process`` returns it.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train

from search_spaces.study import ResourceSpec
from service.sweep.mailbox import Mailbox
from trainers.data import TokenFiles
from trainers.job import Event, Job, result_in

POLL_S = 1.0
"""How often a trial looks whether its group is still alive."""
CLOSE_S = 60.0
"""How long a group may take to end; about one second on two cores that have nothing else to do."""


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """What a group is; trials of equal configs share one."""

    tokens: TokenFiles
    resources: ResourceSpec
    ray_folder: Path
    micro_batch_memo: Path
    agreement_timeout_s: float = 120.0


class GroupDied(RuntimeError):
    """The Ray Train run ended although nobody closed it."""


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

    def keeps(self) -> bool:
        """Whether the group takes another job, which it then waits for."""
        return self.alive and bool(ray.get(self._mailbox.keep.remote()))

    def run(self, job: Job) -> Iterator[list[Event]]:
        """Train one cell; yields its events as they come, its result last, and an empty list every ``POLL_S``.

        A caller that stops listening (Tune ends a trial early) cancels the cell.

        Raises:
            GroupDied: the group is gone for good.
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

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Let the workers return and wait for the run to end, which frees its cores."""
        if ray.is_initialized() and self.alive:
            self._mailbox.close.remote()
            self._thread.join(timeout_s)

    def _fit(self) -> None:
        from ray.train.torch import TorchTrainer  # imports torch: seconds

        from trainers.ray_worker import WorkerConfig, serve_cells

        config, resources = self.config, self.config.resources
        trainer = TorchTrainer(
            serve_cells,  # type: ignore[arg-type]  # Ray wants a plain dict where we name the keys
            train_loop_config=WorkerConfig(  # type: ignore[arg-type]
                mailbox=self._mailbox,
                tokens=config.tokens,
                compile=resources.compile,
                micro_batch_memo=config.micro_batch_memo,
                threads=resources.cpus_per_worker,
                share=resources.gpus_per_worker or 1.0,
                agreement_timeout_s=config.agreement_timeout_s,
            ),
            scaling_config=scaling(resources),
            run_config=ray.train.RunConfig(
                name=self.name,
                storage_path=str(config.ray_folder),
                # The mailbox counts failures by cell; a group that trained a thousand cells may fail more often.
                failure_config=ray.train.FailureConfig(max_failures=-1),
            ),
        )
        try:
            trainer.fit()
        except BaseException as failure:  # the trial that waits for this group raises it
            self._failure = failure


def scaling(resources: ResourceSpec) -> ray.train.ScalingConfig:
    """What a group asks Ray for: its workers on one node where there is one with room, else on as few as possible."""
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    return ray.train.ScalingConfig(
        num_workers=resources.workers,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=per_worker,
        placement_strategy="PACK",
    )


_group: WarmGroup | None = None


def group_of_this_process(config: GroupConfig) -> WarmGroup:
    """The warm group of this process; a new one if there is none, it ended, or it is of another config."""
    global _group
    if _group and (_group.config != config or not _group.keeps()):
        close_group()
    if _group is None:
        _group = WarmGroup(config)
    return _group


def close_group() -> None:
    """End the warm group of this process, if it has one.

    Without it a group outlives the process that owns it for seconds, in which Ray Train may place it anew: nobody
    frees those cores then.
    """
    global _group
    if _group:
        _group.close()
        _group = None

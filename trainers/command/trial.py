"""A command as a trial: started once on each node of a cell, its metrics followed, its end judged."""

from __future__ import annotations

import glob
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from search_spaces.command_line import as_text, placeholders, substitute
from search_spaces.errors import InvalidInput
from search_spaces.record import CellResult
from search_spaces.trainer import TrainerSpec
from trainers.command.cell_folder import clear, holds_start, set_aside
from trainers.command.environment import environment, free_port, hide_secrets
from trainers.command.output import Output
from trainers.command.process import CommandProcess, kill_marked, marker
from trainers.command.supervisor import CANNOT_START
from trainers.metric_streams import STREAMS, Evaluations
from trainers.metric_streams.mlflow_runs import SQLITE
from trainers.metric_streams.text import Stdout
from trainers.protocol import Checkpoint, Context, Report, TrialCell
from trainers.reported_run import ReportedRun, open_folder

MAX_FAILED_RESUMPTIONS = 2
"""A start is set aside after this many in a row: one may be a passing fault of the machine."""
SIGNALED = 128
"""Shells add this to the signal that killed a process."""
POLL_S = 0.2
"""How often metrics and requests to stop are looked for, and how often nodes tell each other how they are."""


@dataclass(frozen=True)
class Status:
    """How the command is doing on one node."""

    code: int | None
    """Exit code, once everything that it started has ended."""
    quiet_s: float
    """Seconds since its last output or metric."""
    end: Literal["stop", "diverged"] | None = None
    """Why it has to end although it runs."""


@dataclass
class CommandTrial:
    """Runs the command of a study, cell after cell."""

    spec: TrainerSpec
    _context: Context | None = field(default=None, init=False, repr=False, compare=False)
    _failed_resumptions: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)
    """Since the last row, by the cell's id."""

    def setup(self, context: Context) -> None:
        if not Path(self.spec.directory).is_dir():
            problem = f"is not a folder on {os.uname().nodename}"
            remedy = "put the code on a file system that every node sees, or copy it to the same path"
            raise InvalidInput("trainer.directory", self.spec.directory, problem, remedy)
        self._context = context

    def train(self, cell: TrialCell, report: Report, checkpoint: Checkpoint) -> CellResult:
        assert self._context is not None, "setup comes first"
        attempt = Attempt(self.spec, self._context, cell, report, checkpoint)
        result = attempt.run()
        if attempt.reported:
            self._failed_resumptions.pop(cell.id, None)
        self._failed_resumptions[cell.id] += attempt.cannot_resume
        if self._context.gather(self._failed_resumptions[cell.id] >= MAX_FAILED_RESUMPTIONS)[0]:
            self._failed_resumptions.pop(cell.id, None)
            result = Attempt(self.spec, self._context, cell, report, checkpoint, fresh=True).run()
        return result


class Attempt:
    """One start of the command on this node. All ranks create and run it together."""

    def __init__(
        self,
        spec: TrainerSpec,
        context: Context,
        cell: TrialCell,
        report: Report,
        checkpoint: Checkpoint,
        *,
        fresh: bool = False,
    ) -> None:
        """
        Args:
            fresh: set aside what the folder holds, even if it is a start of the cell.

        Raises:
            OSError: the cell's folder cannot be written.
        """
        assert spec.metrics is not None
        self._spec, self._metrics, self._context, self._checkpoint = spec, spec.metrics, context, checkpoint
        folder = checkpoint.folder
        kill_marked(marker(folder))  # left by a start whose worker and supervisor were both killed
        values: dict[str, object] = {"lr": cell.lr, "seed": cell.seed, **getattr(cell, "factors", {})}
        values |= {"folder": folder, "workers": context.workers, "nodes": context.size, "node_rank": context.rank}
        path = "" if spec.metrics.stdout else metrics_path(spec.metrics.path, values)
        self._stream = STREAMS[spec.metrics.source](spec.metrics, path)
        found = context.rank == 0 and self._prepare_folder(fresh)
        self._run = None
        if context.rank == 0:
            self._run = ReportedRun(checkpoint, report, l_init=spec.l_init)
        self.resumes: bool
        self.resumes, address, port = context.gather((found, context.address, free_port()))[0]
        values |= {"master_addr": address, "master_port": port}
        self._words = substitute(spec.words + (spec.resume_words if self.resumes else ()), values)
        own = "workers" in placeholders(spec.words)
        processes = max(1, context.workers // context.size) if own else 1
        self._environment = environment(
            os.environ, context, processes=processes, cell_id=cell.id, master=(address, port)
        )
        # A file is read from its start again; what a command printed before it was interrupted is not.
        start = self._run.last_step + 1 if self._run and self.resumes and spec.metrics.stdout else 0
        self._evaluations = Evaluations(spec.metrics, start)
        self._last_record = time.monotonic()
        self.cannot_resume = False
        """Whether what it resumed from seems to be damaged, for example by the kill that made it resume: it then ended
        by itself, with an error and before its first row. Known on rank 0."""

    def _prepare_folder(self, fresh: bool) -> bool:
        """Returns whether the cell's folder has a start to resume from. If not, removes what is there, or sets it
        aside."""
        spec, folder = self._spec, self._checkpoint.folder
        open_folder(folder, self._checkpoint.mirror)
        if fresh:
            set_aside(folder)
            return False
        by_default = spec.resume_from == type(spec).model_fields["resume_from"].default
        metrics = self._stream.own_files() if by_default else set()
        found = spec.resume is not None and holds_start(folder, spec.resume_from, metrics)
        if not found:
            clear(folder)
        return found

    @property
    def reported(self) -> bool:
        """Whether it has reported a row. Known on rank 0."""
        return self._run is not None and self._run.reported > 0

    def run(self) -> CellResult:
        """Runs the command to its end and judges it. Rank 0's result counts."""
        folder, rank = self._checkpoint.folder, self._context.rank
        output = Output(folder / f"node-{rank}" if rank else folder)
        output.begin(self._words)
        try:
            with CommandProcess(
                self._words,
                directory=Path(self._spec.directory),
                environment=self._environment,
                folder=folder,
                output=output,
                on_output=self._stream.feed if isinstance(self._stream, Stdout) and rank == 0 else ignore_output,
                grace_s=self._spec.grace_s,
            ) as process:
                statuses = self._follow(process)
        finally:
            output.close()
        self._read_metrics(ended=statuses[rank].code == 0)
        lines: list[str] = self._context.gather(
            hide_secrets(process.error or output.last_lines(), os.environ)  # here, as nodes have their own variables
        )
        if self._run is None:
            return CellResult(state="finished")
        result = self._judge(self._run, statuses, lines)
        self._run.close()
        return replace(result, reason=hide_secrets(result.reason, os.environ))

    def _follow(self, process: CommandProcess) -> list[Status]:
        """Waits until the command has ended on every rank, or has to end; returns how it was on each then."""
        while True:
            process.wait(POLL_S)
            self._read_metrics()
            quiet_s = time.monotonic() - max(process.last_output, self._last_record)
            statuses: list[Status] = self._context.gather(Status(process.code, quiet_s, self._must_end()))
            codes = [status.code for status in statuses]
            if None not in codes or any(codes) or any(status.end for status in statuses) or self._silent(statuses):
                return statuses

    def _must_end(self) -> Literal["stop", "diverged"] | None:
        if self._run and self._run.diverged:
            return "diverged"
        return "stop" if self._checkpoint.should_stop() else None

    def _silent(self, statuses: list[Status]) -> bool:
        return min(status.quiet_s for status in statuses) > self._spec.silence_s

    def _read_metrics(self, *, ended: bool = False) -> None:
        if self._run is None:
            return
        if records := self._stream.read(ended=ended):
            self._last_record = time.monotonic()
        for step, metrics in self._evaluations.read(records):
            self._run.report(step, **metrics)

    def _judge(self, run: ReportedRun, statuses: list[Status], lines: list[str]) -> CellResult:
        """The result, from what was reported and how the command ended on each rank."""
        if run.diverged:
            return run.end("diverged", run.diverged)
        failed = next((rank for rank, status in enumerate(statuses) if status.code), None)
        if failed is not None:
            code = statuses[failed].code or 0
            self.cannot_resume = self.resumes and not run.reported and 0 < code < SIGNALED and code != CANNOT_START
            where = f" on node {failed}" if len(statuses) > 1 else ""
            return run.end("crashed", with_lines(exit_reason(code) + where, lines[failed]))
        if None not in [status.code for status in statuses]:
            return run.result() if run.evaluated else run.end("crashed", self._no_metric())
        if any(status.end for status in statuses):
            return run.end("stopped", "asked to stop")
        silent = f"no output and no metric for {self._spec.silence_s:g} s (trainer.silence_s), so it was ended"
        return run.end("crashed", with_lines(silent, "\n".join(lines)))

    def _no_metric(self) -> str:
        looked = f"looked for {self._metrics.wanted} in {self._metrics.source}, but {self._stream.seen()}"
        return f"the command exited with code 0 and reported no val_loss: {looked}"


def metrics_path(path: str, values: Mapping[str, object]) -> str:
    """The path of the metrics with a cell's values in it, which are never part of a glob."""
    if path.startswith(SQLITE):
        return substitute([path], values)[0]
    return substitute([path], {name: glob.escape(as_text(value)) for name, value in values.items()})[0]


def ignore_output(data: bytes) -> None:
    """For output that holds no metrics."""


def exit_reason(code: int) -> str:
    """How a command ended, in words: its exit code or, if negative, the signal that killed it."""
    if code >= 0:
        return f"the command exited with {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = signal.strsignal(-code) or f"signal {-code}"
    return f"the command was killed by {name}"


def with_lines(reason: str, lines: str) -> str:
    return f"{reason}; its last lines:\n{lines}" if lines else reason

"""Studies as jobs of a Ray cluster: what ``oec run`` does, with its driver on the cluster.

A job needs the address of the cluster's dashboard and its token, and no shared folder: the study goes along in the
entry point. Which job runs which study is kept with the job itself, so that every submitter sees the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.cluster import connection as cluster
from service.cluster.working_dir import Shipment
from service.exit_codes import INTERRUPTED
from service.home.location import local_folder
from trainers.storage.bucket import is_bucket, validate_url

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Status = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
LIVE: tuple[Status, ...] = ("PENDING", "RUNNING")

ANSWER_S = 5.0
"""How long the cluster may take to answer at first."""
LOST_S, AGAIN_S = 60.0, 2.0
"""How long a log that is followed may be out of reach, and the pause before it is tried again."""
SILENT_S = 30.0
"""A followed log that says nothing for so long is asked for anew: its connection may be dead without an end."""
SAVE_S = 60
"""How long a stopped driver may take to save its state; Ray's own 3 s kill it while it does."""
LONGEST = 100_000
"""Characters of an entry point; the system takes 131,071 bytes an argument."""
NOT_FOUND = 127
"""Exit code of a shell that does not find ``oec``."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """A study that was submitted, as the cluster tells of it."""

    id: str
    study: str
    hash: str
    home: str
    """As it was given; empty for the cluster's own ``OEC_HOME``."""
    status: Status
    exit_code: int | None
    """That of the study, see ``service.cli.commands``; None while it is live, or if it never began."""
    submitted: datetime | None
    message: str
    """Of a job that failed, what its driver said last."""

    @property
    def live(self) -> bool:
        return self.status in LIVE


class Jobs:
    """The jobs of one cluster that ``oec`` submitted; those of others are not touched.

    Args:
        address: the cluster's dashboard, ``http://HOST:8265``.

    Raises:
        InvalidInput: nothing answers there within ``ANSWER_S``, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        self.address = dashboard(address)
        self._client = connect(self.address)

    def submit(
        self,
        study: Study,
        *,
        home: str | None,
        retry_crashed: bool = False,
        environment: Mapping[str, str] = {},
        working_dir: Shipment | None = None,
        driver_resource: str | None = None,
        driver_labels: Mapping[str, str] = {},
    ) -> str:
        """Start ``oec run`` of a study on the cluster; returns the job's id.

        The driver asks for no core and no accelerator, and runs on the head unless told otherwise.

        Args:
            home: absolute, on storage that every node sees; the cluster's own ``OEC_HOME`` by default.
            environment: of the driver and all workers.
            working_dir: files whose code runs in place of the installed one.
            driver_resource: a resource of Ray that the driver's node must have.
            driver_labels: labels of Ray that the driver's node must have.

        Raises:
            InvalidInput: the study can not run on another machine, or a live job runs it in the same home.
        """
        home = portable(study, home)
        entrypoint = command(study, retry_crashed=retry_crashed)
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(SAVE_S), **environment, **({"OEC_HOME": home} if home else {})}
        runtime: dict[str, Any] = {"env_vars": variables}
        with tempfile.TemporaryDirectory() as place:
            if working_dir:
                runtime["working_dir"] = str(working_dir.archive(Path(place)))
            return self._submit(study, home, entrypoint, runtime, driver_resource, driver_labels)

    def _submit(
        self,
        study: Study,
        home: str | None,
        entrypoint: str,
        runtime: Mapping[str, Any],
        driver_resource: str | None,
        driver_labels: Mapping[str, str],
    ) -> str:
        """Under the next free id: of several who submit at once, each takes one, or finds that the study runs."""
        while True:
            before = self.all()
            for job in before:
                if job.live and (job.study, job.home) == (study.name, home or ""):
                    remedy = f"`oec logs {job.id} --follow` shows it, `oec stop {study.name}` ends it"
                    raise InvalidInput("STUDY", study.name, f"is being run by job {job.id}", remedy)
            attempts = [attempt(job.id) for job in before if (job.study, job.hash) == (study.name, study.hash)]
            id = f"oec-{study.name}-{study.hash}-{max(attempts, default=0) + 1}"
            try:
                with self._answering():
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=id,
                        runtime_env=dict(runtime),
                        metadata={"oec.study": study.name, "oec.hash": study.hash, "oec.home": home or ""},
                        entrypoint_num_cpus=0,
                        entrypoint_num_gpus=0,
                        entrypoint_resources={driver_resource: 0.001} if driver_resource else None,
                        entrypoint_label_selector=dict(driver_labels) or None,
                    )
                return id
            except InvalidInput as refused:
                if f"submission_id {id} already exists" not in str(refused.__cause__):
                    raise
                logger.info("another submitter took %s", id)  # and is among all() now

    def all(self) -> list[JobInfo]:
        """Those that ``oec`` submitted, the newest first."""
        with self._answering():
            found = [_info(job) for job in self._client.list_jobs() if "oec.study" in (job.metadata or {})]
        return sorted(found, key=lambda job: (job.submitted or datetime.min.replace(tzinfo=UTC), job.id), reverse=True)

    def get(self, id: str) -> JobInfo:
        """
        Raises:
            InvalidInput: ``oec`` submitted no such job.
        """
        for job in (found := self.all()):
            if job.id == id:
                return job
        known = ", ".join(job.id for job in found) or "none yet"
        raise InvalidInput("JOB", id, "is no job of this cluster", f"jobs here: {known}")

    def newest(self, study: str) -> JobInfo | None:
        """The job that ran, or runs, the study last."""
        return next((job for job in self.all() if job.study == study), None)

    def stop(self, id: str) -> None:
        """Ask the driver to end as on Ctrl-C; it has ``SAVE_S`` to save its state. A job that has ended stays so, and
        Ray stops one that waits for its node only once that is there."""
        if self.get(id).live:
            with self._answering():
                self._client.stop_job(id)

    def logs(self, id: str) -> str:
        """What ``oec run`` of the job has printed so far."""
        self.get(id)
        with self._answering():
            return _own(self._client.get_job_logs(id), self._client.get_job_info(id))

    def follow(self, id: str) -> Iterator[str]:
        """Pieces of the log until the job ends, from its beginning; lost connections are taken up again.

        Raises:
            InvalidInput: there is no such job, or the cluster did not answer for ``LOST_S``.
        """
        self.get(id)
        shown = ""
        answered = time.monotonic()
        while True:
            try:
                live = self.get(id).live
                pieces = self._tail(id) if live else iter([self._client.get_job_logs(id)])
                log, details = "", self._client.get_job_info(id)
                for piece in pieces:
                    answered = time.monotonic()
                    log += piece
                    own = _own(log, details)
                    if len(own) > len(shown):
                        yield own[len(shown) :]
                        shown = own
                if not live:
                    return
            except (RuntimeError, OSError, InvalidInput) as error:
                if time.monotonic() - answered > LOST_S:
                    remedy = f"the job may well go on: `oec logs {id} --follow`"
                    raise InvalidInput("--cluster", self.address, "does not answer any more", remedy) from error
                time.sleep(AGAIN_S)

    def _tail(self, id: str) -> Iterator[str]:
        """Pieces of the raw log from its beginning, until the job ends or the connection says nothing."""

        pieces = self._client.tail_job_logs(id)

        async def next_one() -> str | None:
            try:
                return await asyncio.wait_for(anext(pieces), SILENT_S)
            except (StopAsyncIteration, TimeoutError):
                return None

        with asyncio.Runner() as runner:  # whose end closes the connection
            while (piece := runner.run(next_one())) is not None:
                yield piece

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn what Ray's client raises into bad input: an answer that is no success, or none."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            last = [line for line in str(error).splitlines() if line.strip()][-1]
            remedy = "see the logs of the cluster's head"
            raise InvalidInput("--cluster", self.address, f"does not do it ({last})", remedy) from error


def dashboard(address: str) -> str:
    """The address with its scheme, and without a path.

    Raises:
        InvalidInput: it is none of a dashboard.
    """
    full = address if "://" in address else f"http://{address}"
    if not full.startswith(("http://", "https://")):
        raise InvalidInput("--cluster", address, "is no address of a Ray dashboard", "give http://HOST:8265")
    return full.rstrip("/")


def connect(address: str) -> JobSubmissionClient:
    """Ray's client, which has spoken to the cluster.

    Raises:
        InvalidInput: nothing answers within ``ANSWER_S``, what answers is no Ray, or it refuses the token.
    """
    cluster.configure()
    import requests

    remedy = "give the address of the cluster's dashboard, http://HOST:8265"
    try:
        requests.get(f"{address}/api/version", timeout=ANSWER_S)  # Ray's client itself would wait for ever
    except requests.exceptions.RequestException as error:
        raise InvalidInput("--cluster", address, f"does not answer ({type(error).__name__})", remedy) from error
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray takes what RAY_ADDRESS holds over what it is given
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()
    except AuthenticationError as error:
        token = "set RAY_AUTH_TOKEN to the one that the cluster was started with, or put it into ~/.ray/auth_token"
        raise InvalidInput("--cluster", address, "does not take the token", token) from error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise InvalidInput("--cluster", address, f"is no Ray cluster ({type(error).__name__})", remedy) from error
    return client


def portable(study: Study, home: str | None) -> str | None:
    """See that study and home mean the same on the cluster as here; the home's path, of whichever form it was given.

    Raises:
        InvalidInput: a path is relative, which on the cluster is relative to somewhere else, or no path.
    """
    paths = {"data.path": study.data.path, "data.validation": study.data.validation}
    if home and is_bucket(home):
        at: str | None = validate_url(home)
    else:
        at = paths["--home"] = str(local_folder(home)) if home else None
    for field, path in paths.items():
        if path and not Path(path).is_absolute():
            remedy = "give an absolute path on storage that every node of the cluster sees"
            raise InvalidInput(field, path, "is relative, which on the cluster is somewhere else", remedy)
    return at


def command(study: Study, *, retry_crashed: bool) -> str:
    """The shell command that runs a study that it brings along.

    Raises:
        InvalidInput: the study is too long for one.
    """
    text = f"printf %s {shlex.quote(study.to_yaml())} | oec run -" + (" --retry-crashed" if retry_crashed else "")
    if len(text.encode()) > LONGEST:
        remedy = "put the file on the cluster's storage, and `ray job submit -- oec run FILE`"
        raise InvalidInput("STUDY", study.name, f"is longer than {LONGEST:,} bytes", remedy)
    return text


def attempt(id: str) -> int:
    """The last number of a job's id."""
    number = id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _info(job: JobDetails) -> JobInfo:
    known = job.metadata or {}
    code = job.driver_exit_code
    status: Status = job.status.value
    message = job.message or ""
    if status == "FAILED":
        message = ([line.strip() for line in message.splitlines() if line.strip()] or [""])[-1]
    if code == NOT_FOUND:
        message = "the cluster finds no `oec`: run `ray start` on the head with the PATH of its environment"
    return JobInfo(
        id=job.submission_id or "",
        study=known["oec.study"],
        hash=known.get("oec.hash", ""),
        home=known.get("oec.home", ""),
        status=status,
        exit_code=INTERRUPTED if status == "STOPPED" and code is None else code,
        submitted=datetime.fromtimestamp(job.start_time / 1000, UTC) if job.start_time else None,
        message=message,
    )


def _own(log: str, job: JobDetails) -> str:
    """A log without what Ray writes before the driver's first line, the entry point with the whole study."""
    head = f"Running entrypoint for job {job.submission_id}: {job.entrypoint}\n"
    return log.partition(head)[2]

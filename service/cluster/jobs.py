"""Studies as jobs of a Ray cluster: ``oec run``, with its driver on the cluster.

Submitting needs the address of the cluster's dashboard and its token, but no shared folder: the entry point contains
the study. Which job runs which study is recorded in the metadata of the job, so that every submitter sees the same.
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
from urllib.parse import urlsplit

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.cluster.connection import configure_ray
from service.cluster.working_dir import WorkingDir
from service.exit_codes import INTERRUPTED
from service.home.location import local_folder
from trainers.storage.bucket import is_bucket, validate_url

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Status = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]

CONNECT_TIMEOUT_S = 5.0
LOG_LOST_S, LOG_RETRY_S = 60.0, 2.0
"""How long the cluster may be unreachable while a log is followed, and the pause between two attempts."""
LOG_IDLE_S = 30.0
"""After this time without output, a followed log is requested again: a dead connection may never report its end."""
STOP_GRACE_S = 60
"""How long a stopped driver may take to save its state. Ray's default is 3 s, which is too short for that."""
MAX_COMMAND_BYTES = 100_000
"""The operating system's limit is 131,071 bytes per argument."""
EXIT_COMMAND_NOT_FOUND = 127
"""Exit code of a shell that does not find ``oec``."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """A submitted study, as the cluster reports it."""

    id: str
    study: str
    hash: str
    home: str
    """As it was given; empty for the cluster's own ``OEC_HOME``."""
    status: Status
    exit_code: int | None
    """The exit code of ``oec run``, see ``service.exit_codes``; None while the job is active or if it never started."""
    submitted: datetime | None
    message: str
    """For a failed job, the last line of its driver."""

    @property
    def is_active(self) -> bool:
        return self.status in ("PENDING", "RUNNING")


class Jobs:
    """The jobs of one cluster that ``oec`` submitted; it never touches others.

    Args:
        address: the cluster's dashboard, ``http://HOST:8265``.

    Raises:
        InvalidInput: the address has another scheme, or see ``connect_client``.
    """

    def __init__(self, address: str) -> None:
        url = address if "://" in address else f"http://{address}"
        if not url.startswith(("http://", "https://")):
            raise InvalidInput("--cluster", address, "is not the address of a Ray dashboard", "give http://HOST:8265")
        self.address = url.rstrip("/")
        self._client = connect_client(self.address)

    def submit(
        self,
        study: Study,
        *,
        home: str | None,
        retry_crashed: bool = False,
        working_dir: WorkingDir | None = None,
        driver_resource: str | None = None,
        driver_labels: Mapping[str, str] = {},
    ) -> str:
        """Start ``oec run`` for a study on the cluster, and return the job's id.

        The driver reserves no core and no accelerator. It runs on the head unless a resource or labels are given. It
        uses the MLflow store that this process is set to.

        Args:
            home: an absolute path on storage that every node sees, or a bucket; default: the cluster's ``OEC_HOME``.
            working_dir: files that the job and its workers find in their working directory.
            driver_resource: a Ray resource that the driver's node must have.
            driver_labels: Ray labels that the driver's node must have.

        Raises:
            InvalidInput: the study cannot run on another machine, or an active job runs it in the same home.
        """
        home = portable_home(study, home)
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S), "OEC_HOME": home}
        variables["MLFLOW_TRACKING_URI"] = os.environ.get("MLFLOW_TRACKING_URI")
        runtime_env: dict[str, Any] = {"env_vars": {name: value for name, value in variables.items() if value}}
        job = {
            "entrypoint": entrypoint_command(
                study, retry_crashed=retry_crashed, installed=not (working_dir and working_dir.runs_itself)
            ),
            "runtime_env": runtime_env,
            "metadata": {"oec.study": study.name, "oec.hash": study.hash, "oec.home": home or ""},
            "entrypoint_num_cpus": 0,
            "entrypoint_num_gpus": 0,
            "entrypoint_resources": {driver_resource: 0.001} if driver_resource else None,
            "entrypoint_label_selector": dict(driver_labels) or None,
        }
        with tempfile.TemporaryDirectory() as folder:
            if working_dir:
                runtime_env["working_dir"] = str(working_dir.archive(Path(folder)))
            return self._submit_with_next_id(study, home or "", job)

    def _submit_with_next_id(self, study: Study, home: str, job: Mapping[str, Any]) -> str:
        """Submit under the next free id. The cluster accepts an id only once, so of several concurrent submitters of a
        study one succeeds, and the others try again and find its job."""
        while True:
            jobs = self.all()
            for other in jobs:
                if other.is_active and (other.study, other.home) == (study.name, home):
                    remedy = f"`oec logs {other.id} --follow` shows its output, `oec stop {study.name}` ends it"
                    raise InvalidInput("STUDY", study.name, f"is already running as job {other.id}", remedy)
            same = [other.id for other in jobs if (other.study, other.hash) == (study.name, study.hash)]
            attempts = [int(number) for number in (id.rpartition("-")[2] for id in same) if number.isdecimal()]
            id = f"oec-{study.name}-{study.hash}-{max(attempts, default=0) + 1}"
            try:
                with self._client_errors():
                    self._client.submit_job(submission_id=id, **job)
                return id
            except InvalidInput as error:
                if f"submission_id {id} already exists" not in str(error.__cause__):
                    raise
                logger.info("another submitter took the id %s", id)  # the next round finds its job in all()

    def all(self) -> list[JobInfo]:
        """The jobs that ``oec`` submitted, newest first."""
        with self._client_errors():
            found = [_job_info(job) for job in self._client.list_jobs() if "oec.study" in (job.metadata or {})]
        return sorted(found, key=lambda job: (job.submitted or datetime.min.replace(tzinfo=UTC), job.id), reverse=True)

    def get(self, id: str) -> JobInfo:
        """The job with this id. Raises InvalidInput if ``oec`` has not submitted it."""
        for job in (jobs := self.all()):
            if job.id == id:
                return job
        known = ", ".join(job.id for job in jobs) or "none yet"
        raise InvalidInput("JOB", id, "is not a job of this cluster", f"its jobs: {known}")

    def newest(self, study: str) -> JobInfo | None:
        """The newest job of the study."""
        return next((job for job in self.all() if job.study == study), None)

    def stop(self, id: str) -> None:
        """Ask the driver to stop as on Ctrl-C; it has ``STOP_GRACE_S`` to save its state. A job that has ended is left
        alone. Ray stops a job that waits for its node only when that node has joined."""
        if self.get(id).is_active:
            with self._client_errors():
                self._client.stop_job(id)

    def logs(self, id: str) -> str:
        """What the job's ``oec run`` has printed so far."""
        self.get(id)
        with self._client_errors():
            return _driver_output(self._client.get_job_logs(id), self._client.get_job_info(id))

    def follow(self, id: str) -> Iterator[str]:
        """Yield the log in pieces, from its beginning until the job ends. Lost connections are reopened.

        Raises:
            InvalidInput: the job does not exist, or the cluster was unreachable for ``LOG_LOST_S``.
        """
        self.get(id)
        output = ""
        last_answer = time.monotonic()
        while True:
            try:
                is_active = self.get(id).is_active
                pieces = self._tail(id) if is_active else iter([self._client.get_job_logs(id)])
                log, details = "", self._client.get_job_info(id)
                for piece in pieces:
                    last_answer = time.monotonic()
                    log += piece
                    current = _driver_output(log, details)
                    if len(current) > len(output):
                        yield current[len(output) :]
                        output = current
                if not is_active:
                    return
            except (RuntimeError, OSError, InvalidInput) as error:
                if time.monotonic() - last_answer > LOG_LOST_S:
                    remedy = f"the job may still be running; try `oec logs {id} --follow` later"
                    raise InvalidInput("--cluster", self.address, "no longer answers", remedy) from error
                time.sleep(LOG_RETRY_S)

    def _tail(self, id: str) -> Iterator[str]:
        """Yield the raw log in pieces, from its beginning, until the job ends or ``LOG_IDLE_S`` pass without output."""

        pieces = self._client.tail_job_logs(id)

        async def next_piece() -> str | None:
            try:
                return await asyncio.wait_for(anext(pieces), LOG_IDLE_S)
            except (StopAsyncIteration, TimeoutError):
                return None

        with asyncio.Runner() as runner:  # closes the connection on exit
            while (piece := runner.run(next_piece())) is not None:
                yield piece

    @contextmanager
    def _client_errors(self) -> Iterator[None]:
        """Turn the errors of Ray's client into InvalidInput."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            last_line = [line for line in str(error).splitlines() if line.strip()][-1]
            remedy = "check the logs of the cluster's head"
            raise InvalidInput("--cluster", self.address, f"failed the request ({last_line})", remedy) from error


def connect_client(url: str) -> JobSubmissionClient:
    """Connect Ray's client to the dashboard at ``url``, and check that it answers.

    Raises:
        InvalidInput: nothing answers within ``CONNECT_TIMEOUT_S``, the server is not Ray, or it rejects the token.
    """
    configure_ray()
    import requests

    address_remedy = "give the address of the cluster's dashboard, http://HOST:8265"
    try:
        requests.get(f"{url}/api/version", timeout=CONNECT_TIMEOUT_S)  # Ray's client itself has no timeout
    except requests.exceptions.ProxyError as error:
        remedy = f"add {urlsplit(url).hostname} to NO_PROXY, or check the proxy"
        raise InvalidInput("--cluster", url, "is not reachable through the proxy of the environment", remedy) from error
    except requests.exceptions.RequestException as error:
        raise InvalidInput("--cluster", url, f"does not answer ({type(error).__name__})", address_remedy) from error
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # otherwise RAY_ADDRESS would override the argument
    try:
        client = JobSubmissionClient(url)
        client.list_jobs()
    except AuthenticationError as error:
        remedy = "set RAY_AUTH_TOKEN to the token that the cluster was started with, or put it into ~/.ray/auth_token"
        raise InvalidInput("--cluster", url, "rejects the token", remedy) from error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        problem = f"is not a Ray cluster ({type(error).__name__})"
        raise InvalidInput("--cluster", url, problem, address_remedy) from error
    return client


def entrypoint_command(study: Study, *, retry_crashed: bool, installed: bool = True) -> str:
    """The shell command that contains the study and runs it.

    Args:
        installed: whether to run the head's ``oec``; otherwise, the sources in the job's working directory.

    Raises:
        InvalidInput: the study is too long for a command.
    """
    oec = "oec" if installed else "python -m service.cli"
    command = f"printf %s {shlex.quote(study.to_yaml())} | {oec} run -" + (" --retry-crashed" if retry_crashed else "")
    if len(command.encode()) > MAX_COMMAND_BYTES:
        remedy = "put the file on the cluster's storage, and run `ray job submit -- oec run FILE`"
        raise InvalidInput("STUDY", study.name, f"is longer than {MAX_COMMAND_BYTES:,} bytes", remedy)
    return command


def portable_home(study: Study, home: str | None) -> str | None:
    """Check that the paths of the study and the home mean the same on the cluster as here.

    Returns:
        The home as a plain path or as the URL of a bucket; None if none was given.

    Raises:
        InvalidInput: a path is relative, so it would lead elsewhere on the cluster; or ``home`` is not valid.
    """
    paths = {"data.path": study.data.path, "data.validation": study.data.validation}
    if home and is_bucket(home):
        normalized: str | None = validate_url(home)
    else:
        normalized = paths["--home"] = str(local_folder(home)) if home else None
    for field, path in paths.items():
        if path and not Path(path).is_absolute():
            remedy = "give an absolute path on storage that every node of the cluster sees"
            raise InvalidInput(field, path, "is a relative path, which leads elsewhere on the cluster", remedy)
    return normalized


def _job_info(job: JobDetails) -> JobInfo:
    metadata = job.metadata or {}
    exit_code = job.driver_exit_code
    status: Status = job.status.value
    message = job.message or ""
    if status == "FAILED":
        message = ([line.strip() for line in message.splitlines() if line.strip()] or [""])[-1]
    if exit_code == EXIT_COMMAND_NOT_FOUND:
        message = "the cluster does not find `oec`: run `ray start` on the head with the PATH of its environment"
    return JobInfo(
        id=job.submission_id or "",
        study=metadata["oec.study"],
        hash=metadata.get("oec.hash", ""),
        home=metadata.get("oec.home", ""),
        status=status,
        exit_code=INTERRUPTED if status == "STOPPED" and exit_code is None else exit_code,
        submitted=datetime.fromtimestamp(job.start_time / 1000, UTC) if job.start_time else None,
        message=message,
    )


def _driver_output(log: str, job: JobDetails) -> str:
    """A log without its first line, in which Ray prints the entry point with the whole study."""
    first_line = f"Running entrypoint for job {job.submission_id}: {job.entrypoint}\n"
    return log.partition(first_line)[2]

"""The studies of a home: their summaries, and starting, stopping and resuming them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus

from filelock import FileLock

from search_spaces.errors import InvalidInput
from search_spaces.record import TERMINAL
from search_spaces.study import Study, is_name
from service import exit_codes
from service.cluster.jobs import JobInfo
from service.home.layout import Home
from service.home.studies import is_running, register_study, registered, with_ledger
from service.http.audit import Audit
from service.http.backend import Backend, cluster_unavailable
from service.http.errors import ApiError, ConcurrencyLimit
from service.http.estimate import estimate
from service.http.feed import LedgerFeeds, Snapshot
from service.http.models import (
    Estimate,
    JobOut,
    ResumeResponse,
    Settings,
    StopResponse,
    StudyState,
    StudySummary,
    SubmitResponse,
)
from service.sweep.stop import STUDY, stop_requests

RETRY_S = 30
"""When to retry a submission that was rejected because too many studies were running."""


class Studies:
    """Any thread may call these methods, and several services may run them on one home concurrently."""

    def __init__(self, home: Home, settings: Settings, backend: Backend, feeds: LedgerFeeds, audit: Audit) -> None:
        self._home, self._settings, self._backend, self._feeds, self._audit = home, settings, backend, feeds, audit
        self._limit = ConcurrencyLimit("changes")

    def names(self) -> list[str]:
        return sorted({*registered(self._home), *with_ledger(self._home)})

    def require(self, name: str) -> None:
        """Raise ApiError, 404, if the home has no such study."""
        if not is_name(name) or not self._home.study(name).is_dir() or name not in self.names():
            remedy = "GET /api/v1/studies lists the studies"
            raise ApiError(HTTPStatus.NOT_FOUND, "study", name, "is not in this home", remedy)

    def estimate(self, study: Study) -> Estimate:
        """See ``estimate.estimate``."""
        return estimate(study, self._settings, self._backend.nodes(), self._feeds.speeds())

    def summary(self, name: str) -> StudySummary:
        """Summarize a study, without its job if the cluster does not answer."""
        job = next((job for job in self._backend.jobs_if_connected() or () if job.study == name), None)
        message = job.message if job and job.status == "FAILED" else ""
        study, snapshot = None, Snapshot()
        try:
            snapshot = self._feeds.get(name).read()
            study = self.load(name)
            state = study_state(snapshot, is_running(self._home, name), job)
        except InvalidInput as error:
            state, message = "damaged", str(error)
        return StudySummary(
            name=name,
            description=study.description if study else "",
            hash=study.hash if study else "",
            state=state,
            seq=snapshot.seq,
            cells=dict(snapshot.counts),
            job=job and JobOut.model_validate(job, from_attributes=True),
            message=message if state in ("failed", "damaged", "interrupted") else "",
        )

    def load(self, name: str) -> Study:
        """Load the file of a study, once per version of the file. Raises InvalidInput if it is damaged."""
        path = self._home.study(name) / "study.yaml"
        status = path.stat() if path.is_file() else None
        return _load(str(path), status and (status.st_ino, status.st_mtime_ns))

    def submit(self, token: str, study: Study) -> SubmitResponse:
        """Validate a study, estimate its cost, register its name, and start a job.

        Raises:
            InvalidInput: the study cannot run.
            ApiError: 409, it is already running or its name is taken; 429, too many studies are running; 503, the
                cluster does not answer.
        """
        cost = self.estimate(study)
        with self._audit.change(token, "submit", f"{study.name} ({study.hash})"), self._change_lock():
            self._check_can_start(study.name)
            try:
                register_study(self._home, study)
            except InvalidInput as error:
                if error.field != "name":
                    raise
                raise ApiError(HTTPStatus.CONFLICT, "name", study.name, error.problem, error.remedy) from error
            job = self._start_job(study, retry_crashed=False)
        return SubmitResponse(study=study.name, hash=study.hash, job=job, estimate=cost)

    def resume(self, token: str, name: str, *, retry_crashed: bool) -> ResumeResponse:
        """Start a job that trains the missing cells. Raises what ``submit`` raises."""
        with self._audit.change(token, "resume", name), self._change_lock():
            self._check_can_start(name)
            job = self._start_job(self.load(name), retry_crashed=retry_crashed)
        return ResumeResponse(study=name, job=job)

    def stop(self, token: str, name: str) -> StopResponse:
        """Ask a study's driver to save its state and exit.

        Raises:
            ApiError: 409, the study is not running; 503, the cluster does not answer.
        """
        with self._audit.change(token, "stop", name), self._change_lock():
            job = self._active_job(name)
            if job:
                self._backend.client().stop(job.id)
            elif is_running(self._home, name):
                stop_requests(self._home, name).write(STUDY, f"token {token}")
            else:
                remedy = f"GET /api/v1/studies/{name} returns its state"
                raise ApiError(HTTPStatus.CONFLICT, "study", name, "is not running", remedy)
        return StopResponse(study=name, job=job.id if job else None)

    def _check_can_start(self, name: str) -> None:
        job = self._active_job(name)
        if job or is_running(self._home, name):
            where = f"as job {job.id}" if job else "outside the cluster's jobs"
            remedy = f"wait for it, or POST /api/v1/studies/{name}/stop"
            raise ApiError(HTTPStatus.CONFLICT, "study", name, f"is already running {where}", remedy)
        active = [other.study for other in self._backend.jobs() if other.is_active]
        if len(active) >= self._settings.max_active:
            problem = f"cannot start: {len(active)} studies are running, and the limit is {self._settings.max_active}"
            remedy = f"wait for one of {', '.join(sorted(active))}, or stop it"
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, "study", name, problem, remedy, RETRY_S)

    def _active_job(self, name: str) -> JobInfo | None:
        jobs = self._backend.jobs(refresh=True)
        return next((job for job in jobs if job.study == name and job.is_active), None)

    def _start_job(self, study: Study, *, retry_crashed: bool) -> str:
        if study.trainer is not None:  # the service never starts someone else's code
            problem = "is not started by this service"
            raise InvalidInput("trainer", study.trainer.kind, problem, "use oec run or oec submit")
        try:
            job = self._backend.client().submit(study, home=str(self._home.path), retry_crashed=retry_crashed)
        except InvalidInput as error:
            raise cluster_unavailable(error) if error.field == "--cluster" else error from error
        self._backend.jobs(refresh=True)
        return job

    @contextmanager
    def _change_lock(self) -> Iterator[None]:
        """Serialize changes over all services of the home: of two equal submissions, the second finds the first's
        job."""
        with self._limit.slot(), FileLock(self._home.service / "change.lock"):
            yield


@lru_cache(maxsize=1_000)
def _load(path: str, version: object) -> Study:
    return Study.load(path)


def study_state(snapshot: Snapshot, has_driver: bool, job: JobInfo | None) -> StudyState:
    """Derive the state of a study from its ledger, whether a driver is writing that, and its newest job if any."""
    if has_driver or (job and job.is_active and snapshot.entries):
        return "running"
    if job and job.is_active:
        return "starting"
    if job and job.status == "FAILED" and job.exit_code not in (exit_codes.CRASHED, exit_codes.INTERRUPTED):
        return "interrupted" if snapshot.counts.keys() - {"planned"} else "failed"
    if job and (job.status == "STOPPED" or job.exit_code == exit_codes.INTERRUPTED):
        return "interrupted"
    if not snapshot.entries:
        return "claimed"
    return "interrupted" if any(entry.state not in TERMINAL for entry in snapshot.entries) else "ended"

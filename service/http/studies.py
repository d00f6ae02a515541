"""The studies of a home as the service sees and changes them: from ledgers and the cluster's jobs, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus

from filelock import FileLock

from search_spaces.errors import InvalidInput
from search_spaces.study import Study, is_name
from service import exit_codes
from service.cluster.jobs import JobInfo
from service.home.layout import Home
from service.home.studies import is_running, register_study, registered, with_ledger
from service.http.audit import Audit
from service.http.backend import Backend, unreachable
from service.http.errors import Refused, no_study
from service.http.feed import Feeds, Snapshot
from service.http.models import JobOut, Priced, Resumed, Stopping, StudyState, StudySummary, Submitted
from service.http.pricing import priced
from service.http.queueing import Queue
from service.http.settings import Settings
from service.sweep import stop as stopping
from service.sweep.stop import stop_requests

PASSED_ON = ("MLFLOW_TRACKING_URI",)
"""Of the service's environment, to its jobs."""
AGAIN_S = 30
"""After which a submission that found the service full may try again."""


class Studies:
    """Every method may be called from any thread, and by several services of one home at once."""

    def __init__(self, home: Home, settings: Settings, backend: Backend, feeds: Feeds, audit: Audit) -> None:
        self._home, self._settings, self._backend, self._feeds, self._audit = home, settings, backend, feeds, audit
        self._queue = Queue("changes")
        self._files: dict[str, tuple[tuple[int, int], Study]] = {}

    def known(self) -> list[str]:
        return sorted({*registered(self._home), *with_ledger(self._home)})

    def require(self, name: str) -> None:
        """
        Raises:
            Refused: 404, no such study.
        """
        if not is_name(name) or not self._home.study(name).is_dir() or name not in self.known():
            raise no_study(name)

    def price(self, study: Study) -> Priced:
        """
        Raises:
            InvalidInput: see ``pricing.priced``.
        """
        return priced(study, self._settings, self._backend.nodes(), self._feeds.speeds())

    def summary(self, name: str, jobs: Sequence[JobInfo] | None) -> StudySummary:
        """Where a study stands; ``jobs`` of the home, the newest first, or None where they are not known."""
        job = next((job for job in jobs or () if job.study == name), None)
        message = job.message if job and job.status == "FAILED" else ""
        study, snapshot = None, None
        try:
            snapshot = self._feeds.of(name).read()
            study = self.file(name)
            state = state_of(snapshot, is_running(self._home, name), job)
        except InvalidInput as error:
            state, message = "damaged", str(error)
        return StudySummary(
            name=name,
            description=study.description if study else "",
            hash=study.hash if study else "",
            state=state,
            seq=snapshot.seq if snapshot else 0,
            cells=dict(snapshot.counts) if snapshot else {},
            job=job and JobOut(**{field: getattr(job, field) for field in JobOut.model_fields}),
            message=message if state in ("failed", "damaged", "interrupted") else "",
        )

    def file(self, name: str) -> Study:
        """
        Raises:
            InvalidInput: it is damaged.
        """
        path = self._home.study(name) / "study.yaml"
        status = path.stat() if path.is_file() else None
        version = (status.st_ino, status.st_mtime_ns) if status else (0, 0)
        known = self._files.get(name)
        if known is None or known[0] != version:
            known = self._files[name] = version, Study.load(str(path))
        return known[1]

    def submit(self, token: str, study: Study) -> Submitted:
        """Validate, price, claim the name, and start a job.

        Raises:
            InvalidInput: the study can not be run.
            Refused: 409, it is being run or its name is another study's; 429, too many are; 503, no cluster answers.
        """
        cost = self.price(study)
        with self._audit.change(token, "submit", f"{study.name} ({study.hash})"), self._one_at_a_time():
            self._see_that_it_may_start(study.name)
            try:
                register_study(self._home, study)
            except InvalidInput as error:
                if error.field != "name":
                    raise
                raise Refused(HTTPStatus.CONFLICT, "name", study.name, error.problem, error.remedy) from error
            job = self._start(study, retry_crashed=False)
        return Submitted(study=study.name, hash=study.hash, job=job, priced=cost)

    def resume(self, token: str, name: str, *, retry_crashed: bool) -> Resumed:
        """Start a job that trains what is missing.

        Raises:
            Refused: see ``submit``.
        """
        with self._audit.change(token, "resume", name), self._one_at_a_time():
            self._see_that_it_may_start(name)
            job = self._start(self.file(name), retry_crashed=retry_crashed)
        return Resumed(study=name, job=job)

    def stop(self, token: str, name: str) -> Stopping:
        """Ask a study's driver to save its state and end.

        Raises:
            Refused: 409, it is not being run; 503, no cluster answers.
        """
        with self._audit.change(token, "stop", name), self._one_at_a_time():
            job = self._live(name)
            if job:
                self._backend.client().stop(job.id)
            elif is_running(self._home, name):
                stop_requests(self._home, name).write(stopping.STUDY, f"token {token}")
            else:
                remedy = f"GET /api/v1/studies/{name} says where it stands"
                raise Refused(HTTPStatus.CONFLICT, "study", name, "is not being run", remedy)
        return Stopping(study=name, job=job.id if job else None)

    def _see_that_it_may_start(self, name: str) -> None:
        job = self._live(name)
        if job or is_running(self._home, name):
            by = f"job {job.id}" if job else "a driver that is no job"
            remedy = f"wait for it, or POST /api/v1/studies/{name}/stop"
            raise Refused(HTTPStatus.CONFLICT, "study", name, f"is being run by {by}", remedy)
        active = [other.study for other in self._backend.jobs() if other.live]
        if len(active) >= self._settings.max_active:
            remedy = f"wait for one of {', '.join(sorted(active))}, or stop it"
            problem = f"finds {len(active)} others being run, as many as this service runs at once"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "study", name, problem, remedy, AGAIN_S)

    def _live(self, name: str) -> JobInfo | None:
        return next((job for job in self._backend.jobs(anew=True) if job.study == name and job.live), None)

    def _start(self, study: Study, *, retry_crashed: bool) -> str:
        try:
            job = self._backend.client().submit(
                study,
                home=str(self._home.path),
                retry_crashed=retry_crashed,
                environment={name: os.environ[name] for name in PASSED_ON if os.environ.get(name)},
            )
        except InvalidInput as error:
            raise unreachable(error) if error.field == "--cluster" else error from error
        self._backend.jobs(anew=True)
        return job

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Over all services of the home: of two equal submissions one finds the other's job."""
        with self._queue.place(), FileLock(self._home.service / "change.lock"):
            yield


def state_of(snapshot: Snapshot, being_run: bool, job: JobInfo | None) -> StudyState:
    """The state of a study by its ledger, whether that is held, and its newest job, where it has one."""
    if being_run or (job and job.live and snapshot.entries):
        return "running"
    if job and job.live:
        return "starting"
    if job and job.status == "FAILED" and job.exit_code not in (exit_codes.CRASHED, exit_codes.INTERRUPTED):
        return "interrupted" if snapshot.counts.keys() - {"planned"} else "failed"
    if job and (job.status == "STOPPED" or job.exit_code == exit_codes.INTERRUPTED):
        return "interrupted"
    if not snapshot.entries:
        return "claimed"
    return "interrupted" if snapshot.missing else "ended"

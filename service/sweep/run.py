"""One study from its file to its report: every check first, then the cluster, then the sweep."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import FrameType

from rich.console import Console

from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.cluster import connection as cluster
from service.cluster import placement
from service.home import shared_storage as storage
from service.home.layout import Home
from service.home.ledger import Ledger, finished_elsewhere
from service.mlflow import sink as mlflow_sink
from service.mlflow.sink import MlflowSink
from service.sweep.progress import Progress
from service.sweep.refinement import Refinement
from service.sweep.stop import Watch
from trainers.data import MANIFEST, Tokens, prepare
from trainers.storage.files import swept

FLUSH_S = 60.0
"""How long the end of a study waits for MLflow."""
FLUSH_INTERRUPTED_S = 5.0
STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""Errors that say of the home's storage, and not of us, that it does not take what is written."""

terminated = threading.Event()
"""A SIGTERM came, or a SIGINT while Ray started."""


def tokens_of(study: Study, home: Home, report: Callable[[str], None]) -> Tokens:
    """The study's tokens, prepared in the home if need be, undamaged, and long enough for it."""
    tokens = prepare(study.data, home.path, fetch=partial(home.fetch, last=MANIFEST), report=report)
    tokens.verify(home.verified)
    tokens.check_length(study.training)
    if tokens.folder:
        home.keep(tokens.folder, MANIFEST)
    return tokens


def run(study: Study, home: Home, *, address: str | None, retry_crashed: bool, console: Console) -> int:
    """Train every cell of the study that the home does not know; returns how many cells of it are crashed.

    Raises:
        InvalidInput: something can not be run as it stands, or the storage is full; nothing that was done is lost.
        KeyboardInterrupt: SIGINT or SIGTERM; the ledger holds what was done, and the same call goes on.
    """
    stop_on_sigterm()
    try:
        return _run(study, home, address=address, retry_crashed=retry_crashed, console=console)
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        problem, remedy = f"takes no more ({error.strerror})", "make room, and the same command goes on"
        if home.bucket:
            problem, remedy = f"does not take what is written ({error})", "when it does, the same command goes on"
        raise InvalidInput("--home", str(home), problem, remedy) from error


def _run(study: Study, home: Home, *, address: str | None, retry_crashed: bool, console: Console) -> int:
    mlflow_sink.check(home.tracking_uri)
    embedded = cluster.address(address) is None
    if embedded:
        placement.concurrency(study.resources, cluster.this_machine())
    tokens = tokens_of(study, home, console.print)
    plan = Plan(study, tokens.digest)
    home.claim(study)
    with Ledger(home.ledger(study.name), study.name, write=True, journal=home.journal(study.name)) as ledger:
        for folder in (home.study(study.name), *home.study(study.name).glob("cells/*")):
            swept(folder)  # what a killed driver or worker of this study was writing
        same_data(ledger, plan)
        ledger.plan(plan.cells)
        reuse(ledger, home, study, retry_crashed=retry_crashed)
        proposals = sum(Refinement(plan, ledger).cells_left.values())
        todo = len(ledger.missing(retry_crashed=retry_crashed)) + proposals
        most = "at most " if proposals and study.refine.edge else ""
        cells = f"{len(ledger.entries) + proposals} cells, {todo} to train"
        console.print(f"study {study.name}: {most}{cells}; home {home}", soft_wrap=True)
        if todo:
            train(plan, tokens, home, ledger, address=address, retry_crashed=retry_crashed, console=console)
            drop_checkpoints_of_pruned(ledger, home)
        return ledger.counts()["crashed"]


def train(
    plan: Plan,
    tokens: Tokens,
    home: Home,
    ledger: Ledger,
    *,
    address: str | None,
    retry_crashed: bool,
    console: Console,
) -> None:
    """The sweep between connecting to Ray and letting go of it."""
    cluster.configure()
    import ray  # seconds, and not needed to refuse a study

    from service.sweep.sweep import sweep, warm

    flush = FLUSH_INTERRUPTED_S
    with ExitStack() as held:
        held.callback(ray.shutdown)
        join(address, console)
        if cluster.address(address):
            storage.check(home)
        at_once = placement.at_once(plan.study.resources, placement.joined())
        workers = plan.study.resources.workers
        console.print(f"{at_once} cells at once, {workers} DDP workers each; the workers start once", soft_wrap=True)
        sink = MlflowSink(home.tracking_uri, home, plan.study)  # a study that does not fit has nothing to deliver
        held.callback(lambda: sink.close(flush))
        head = cluster.HeadWatch(ray.get_runtime_context().gcs_address, lambda: give_up(console))
        with Progress(plan, ledger, console) as progress, Watch(home.stops(plan.study.name)), head:
            train_cell = warm(plan.study, tokens, home)
            error = sweep(
                plan, train_cell, home, ledger, [progress, sink], at_once=at_once, retry_crashed=retry_crashed
            )
        if error:
            console.print(f"stopped early, as the first cells all crashed alike: {error}", soft_wrap=True)
        flush = FLUSH_S


def drop_checkpoints_of_pruned(ledger: Ledger, home: Home) -> None:
    """Nothing goes on from them. Workers save a cell as they let go of it, so that this waits for their end."""
    for entry in ledger.ended():
        if entry.state == "pruned":
            folder = home.cell(entry.cell.id, ledger.study) / "checkpoints"
            shutil.rmtree(folder, ignore_errors=True)
            if mirror := home.mirror(folder):
                mirror.bucket.remove(mirror.bucket.names())


def give_up(console: Console) -> None:
    """End this process now. There is nobody left to shut down, every end of a cell is in the ledger, and what MLflow
    lacks is in the files of the home."""
    console.print("the Ray cluster does not answer any more; the same command goes on with the missing cells")
    sys.stdout.flush()
    os._exit(os.EX_TEMPFAIL)


def same_data(ledger: Ledger, plan: Plan) -> None:
    """Refuse to go on with a study on other tokens than it began with.

    Raises:
        InvalidInput: the text, the token files or (for ``builtin``) the Python that they come from changed.
    """
    before = {entry.cell.data for entry in ledger.entries.values()} - {plan.data}
    if before:
        raise InvalidInput(
            "data",
            plan.data,
            f"is not what study {plan.study.name} began with in this home, {before.pop()}",
            "restore the data, or give the study another name",
        )


def reuse(ledger: Ledger, home: Home, study: Study, *, retry_crashed: bool) -> None:
    """Take over the results of equal cells that other studies of this home have trained."""
    missing = {cell.id for cell in ledger.missing(retry_crashed=retry_crashed)}
    others = [(name, home.ledger(name)) for name in home.known() if name != study.name]
    for other, entry in finished_elsewhere(others):
        if entry.cell.id in missing:
            ledger.end(entry.cell.id, entry.state, entry.result, reused_from=entry.reused_from or other)
            missing.discard(entry.cell.id)


def join(address: str | None, console: Console) -> None:
    """Connect to Ray; a SIGTERM or SIGINT meanwhile counts afterwards, or after the first failed try.

    A SIGINT would leave Ray half started. For SIGTERM it sets handlers of its own, first one that aborts and then one
    that exits. Processes that it starts are not to inherit that the signal is held back, and a thread that began
    earlier may get it all the same.

    Raises:
        KeyboardInterrupt: it came.
    """
    held = {signal.SIGTERM}
    os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, held))
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda signum, frame: terminated.set())
    try:
        cluster.connect(address, partial(console.print, soft_wrap=True), terminated.is_set)
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        stop_on_sigterm()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
    if terminated.is_set():  # or some library's import has swallowed what the handler raised
        raise KeyboardInterrupt


def stop_on_sigterm() -> None:
    """Let SIGTERM (``ray job stop``, a batch system) do what Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        terminated.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)

"""One study from its file to its last cell: every check first, then the cluster, then the sweep."""

from __future__ import annotations

import errno
import shutil
from contextlib import ExitStack
from functools import partial

from rich.console import Console

from search_spaces.errors import InvalidInput
from search_spaces.intervals import given_up_note
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.cluster import connection
from service.cluster.placement import fit_study, joined_nodes
from service.home import copies
from service.home.data import prepare_source
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.shared import check_shared
from service.home.studies import read_ledger, register_study, with_ledger, write_ledger
from service.mlflow.address import check_store, tracking_uri
from service.mlflow.sink import MlflowSink
from service.sweep.progress import Progress
from service.sweep.refinement import Refinement
from service.sweep.stop import Interrupts, StopWatch, abandon, stop_requests
from trainers.data import Tokens
from trainers.storage.files import remove_unfinished

FLUSH_S, INTERRUPTED_FLUSH_S = 60.0, 5.0
"""How long to wait for MLflow at the end of a study, and after an interruption."""
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""Errors that mean that the home's storage, not this program, fails to write."""


def run_study(study: Study, home: Home, *, address: str | None, retry_crashed: bool, console: Console) -> int:
    """Train every cell of the study that the home lacks; returns how many of its cells are crashed.

    Raises:
        InvalidInput: an input is invalid, or the storage is full; no results are lost.
        KeyboardInterrupt: SIGINT, SIGTERM or ``oec stop``; the ledger has all results, and the same call resumes.
    """
    with Interrupts() as interrupts:
        try:
            check_nodes(study, home)
            check_store(tracking_uri(home))
            if connection.resolve_address(address) is None:
                fit_study(study, connection.local_nodes())
            source, tokens = prepare_source(study, home, console.print)
            plan = Plan(study, source)
            register_study(home, study)
            with write_ledger(home, study.name) as ledger:
                if plan_cells(plan, ledger, home, retry_crashed=retry_crashed, console=console):
                    _sweep_on_ray(plan, tokens, home, ledger, address, retry_crashed, console, interrupts)
                    remove_pruned_checkpoints(ledger, home)
                    if note := given_up_note(entry.result for entry in ledger.entries.values()):
                        console.print(note, soft_wrap=True)
                return ledger.counts()["crashed"]
        except OSError as error:
            if error.errno not in STORAGE_ERRORS:
                raise
            first = "once it can be," if home.bucket else "free some space, then"
            problem = f"cannot be written ({error if home.bucket else error.strerror})"
            raise InvalidInput("--home", str(home), problem, f"{first} re-run the same command to resume") from error


def check_nodes(study: Study, home: Home) -> None:
    """
    Raises:
        InvalidInput: a cell has several nodes, and its folder would be a different one on each.
    """
    if home.bucket and study.trainer and study.distinct_nodes:
        problem = f"spreads a cell over nodes that do not share the folder of its files, as {home} is a bucket"
        raise InvalidInput("trainer.nodes", study.trainer.nodes, problem, "use a home on shared storage")


def plan_cells(plan: Plan, ledger: Ledger, home: Home, *, retry_crashed: bool, console: Console) -> int:
    """Bring the ledger up to date with the plan and the home; returns the maximum number of cells to train.

    Raises:
        InvalidInput: the study started with other data.
    """
    study = plan.study
    for folder in (home.study(study.name), *home.study(study.name).glob("cells/*")):
        remove_unfinished(folder)  # temporary files of killed drivers and workers of this study
    check_same_data(ledger, plan)
    ledger.plan(plan.cells)
    reuse_results(ledger, home, retry_crashed=retry_crashed, given_up=study.intervals.give_up is not None)
    proposals = sum(Refinement(plan, ledger).cells_left.values())
    to_train = len(ledger.missing(retry_crashed=retry_crashed)) + proposals
    at_most = "at most " if proposals and study.refine.edge else ""
    cells = f"{len(ledger.entries) + proposals} cells, {to_train} to train"
    console.print(f"study {study.name}: {at_most}{cells}; home {home}", soft_wrap=True)
    return to_train


def check_same_data(ledger: Ledger, plan: Plan) -> None:
    """
    Raises:
        InvalidInput: the text, the token files, (for ``builtin``) the Python that they come from, or the trainer of the
            study has changed.
    """
    before = {entry.cell.source for entry in ledger.entries.values()} - {plan.data}
    if before:
        problem = f"is not what study {plan.study.name} started with in this home, {before.pop()}"
        if trainer := plan.study.trainer:
            files = ", ".join(trainer.identity_files()) or "no files"
            remedy = f"restore command and contents ({files}), or give the study another name"
            raise InvalidInput("trainer", plan.data, problem, remedy)
        raise InvalidInput("data", plan.data, problem, "restore the data, or give the study another name")


def reuse_results(ledger: Ledger, home: Home, *, retry_crashed: bool, given_up: bool) -> None:
    """Reuse the results of equal cells that other studies of this home have trained, with ``given_up`` also of those
    that were given up there."""
    missing = {cell.id for cell in ledger.missing(retry_crashed=retry_crashed)}
    for name in with_ledger(home):
        if name == ledger.study or not missing:
            continue
        for entry in read_ledger(home, name).entries.values():
            if entry.result.skipped_steps is not None and not given_up:
                continue
            if entry.id in missing and entry.state in ("finished", "diverged"):
                ledger.end(entry.id, entry.result, reused_from=entry.reused_from or name)
                missing.discard(entry.id)


def _sweep_on_ray(
    plan: Plan,
    tokens: Tokens | None,
    home: Home,
    ledger: Ledger,
    address: str | None,
    retry_crashed: bool,
    console: Console,
    interrupts: Interrupts,
) -> None:
    """Connect to Ray, sweep, disconnect."""
    connection.configure_ray()
    import ray  # takes seconds, and the checks above do not need it

    from service.sweep.sweep import by_worker_group, sweep
    from service.sweep.trials import describe_group, group_config

    flush_s = INTERRUPTED_FLUSH_S
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        with interrupts.deferred():
            connection.connect(address, partial(console.print, soft_wrap=True), lambda: interrupts.requested)
        if connection.resolve_address(address):
            check_shared(home)
        max_concurrent = fit_study(plan.study, joined_nodes(), can_grow=True).cells
        cells = "one cell at a time" if max_concurrent == 1 else f"up to {max_concurrent} cells in parallel"
        console.print(f"{cells}, {describe_group(plan.study)}", soft_wrap=True)
        # Only now, so that nothing is delivered for a study that does not fit.
        sink = MlflowSink(tracking_uri(home), home, plan.study)
        stack.callback(lambda: sink.close(flush_s))
        head_watch = connection.HeadWatch(ray.get_runtime_context().gcs_address, lambda: abandon(console))
        stop_watch = StopWatch(stop_requests(home, plan.study.name))
        with Progress(plan, ledger, console) as progress, stop_watch, head_watch:
            error = sweep(
                plan,
                by_worker_group(group_config(plan.study, tokens, home)),
                home,
                ledger,
                [progress, sink],
                max_concurrent=max_concurrent,
                retry_crashed=retry_crashed,
            )
        if error:
            console.print(f"stopped early: the first cells all crashed with the same error: {error}", soft_wrap=True)
        flush_s = FLUSH_S


def remove_pruned_checkpoints(ledger: Ledger, home: Home) -> None:
    """Remove the checkpoints of pruned cells, because nothing resumes from them. Call it after the workers have ended:
    they save a checkpoint when they drop a cell."""
    for entry in ledger.ended():
        if entry.state == "pruned":
            folder = home.cell(entry.id, ledger.study) / "checkpoints"
            shutil.rmtree(folder, ignore_errors=True)
            if mirror := copies.mirror(home, folder):
                mirror.bucket.remove(mirror.bucket.names())

"""Commands for studies that run as jobs on a Ray cluster. Handlers parse and call, nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from search_spaces.errors import InvalidInput
from service import exit_codes
from service.cli.options import PATH, STUDY_NAME, cluster_option, home_option, repeatable

if TYPE_CHECKING:
    from service.cluster.jobs import JobInfo, Jobs

EXIT_DETACHED = 130
"""Ctrl-C while following a job, which continues."""
STOP_TIMEOUT_S, POLL_S = 90.0, 0.5

CLUSTER_HELP = "Dashboard of the Ray cluster, http://HOST:8265. Token: RAY_AUTH_TOKEN or ~/.ray/auth_token."
required_cluster = cluster_option(required=True, help=CLUSTER_HELP)


@click.command(short_help="Run a study as a job on a Ray cluster.")
@click.argument("study")
@required_cluster
@click.option(
    "--home",
    envvar="OEC_HOME",
    show_envvar=True,
    help="Folder or bucket that every node can read and write; default: the cluster's own OEC_HOME.",
)
@click.option("--retry-crashed", is_flag=True, help="Train crashed cells again, too.")
@click.option("--working-dir", type=PATH, help="Folder to upload; sources of oec replace the installed package.")
@click.option("--max-megabytes", default=50.0, help="Maximum size of the upload of --working-dir.")
@click.option(
    "--driver-resource", metavar="NAME", help="Run the driver on a node with this Ray resource; default: the head node."
)
@repeatable(
    "--driver-label", "labels", metavar="KEY=VALUE", help="Run the driver on a node with this Ray label; repeatable."
)
@click.option("--follow", is_flag=True, help="Print the job's output until it ends, and exit with its exit code.")
def submit(
    study: str,
    cluster: str,
    home: str | None,
    working_dir: Path | None,
    max_megabytes: float,
    labels: tuple[str, ...],
    follow: bool,
    **options: Any,
) -> None:
    """Run STUDY as a job on a Ray cluster. Re-run the same command to resume."""
    from search_spaces.study import Study
    from service.cluster.jobs import Jobs, portable_home
    from service.cluster.working_dir import WorkingDir

    spec = Study.load(study)
    portable_home(spec, home)
    driver_labels = dict(label(text) for text in labels)
    sources = WorkingDir.scan(working_dir, max_megabytes=max_megabytes) if working_dir else None
    client = Jobs(cluster)
    if sources:
        click.echo(f"working directory {sources}")
    job = client.submit(spec, home=home, working_dir=sources, driver_labels=driver_labels, **options)
    click.echo(f"job {job}: {spec.name}, home {home or 'the OEC_HOME of the cluster'}")
    if follow:
        sys.exit(follow_job(client, job))
    click.echo(
        f"to watch it, run `oec logs {spec.name} --follow`; to stop it, `oec stop {spec.name} --cluster {cluster}`"
    )


@click.command(short_help="List these jobs.")
@required_cluster
def jobs(cluster: str) -> None:
    """List the jobs that `oec submit` started on a Ray cluster, newest first."""
    from tabulate import tabulate

    from service.cluster.jobs import Jobs

    rows = [
        (
            job.id,
            job.study,
            job.status.lower(),
            "" if job.exit_code is None else job.exit_code,
            f"{job.submitted:%Y-%m-%d %H:%M:%S}" if job.submitted else "",
            job.home or "the cluster's",
            job.message if job.status == "FAILED" else "",
        )
        for job in Jobs(cluster).all()
    ]
    headers = ("job", "study", "state", "exit code", "submitted (UTC)", "home", "message")
    # No line wrapping, so that ids can be copied.
    click.echo(tabulate(rows, headers, tablefmt="plain", disable_numparse=True) if rows else "no jobs yet")


@click.command(short_help="Print the output of a job or a cell.")
@click.argument("job", type=STUDY_NAME, metavar="JOB|STUDY")
@cluster_option(help=CLUSTER_HELP)
@click.option("--follow", is_flag=True, help="Print until the job ends, and exit with its exit code.")
@home_option
@click.option("--cell", metavar="ID", help="Print what the command of this cell of a study has printed, from the home.")
def logs(job: str, cluster: str | None, follow: bool, home: str, cell: str | None) -> None:
    """Print the output of a job, or of the newest job of a study; with --cell, that of a command that trains a cell."""
    if cell is not None:
        if follow:
            problem, remedy = "does not apply to --cell", "run the command again to see more"
            raise InvalidInput("--follow", "true", problem, remedy)
        from service.home.location import open_home
        from service.home.output import cell_output

        click.echo(cell_output(open_home(home), job, cell), nl=False)
        return
    if cluster is None:
        raise InvalidInput("--cluster", None, "is missing", "give the dashboard of the cluster, or --cell")
    from service.cluster.jobs import Jobs

    client = Jobs(cluster)
    found = client.newest(job) or client.get(job)
    if follow:
        sys.exit(follow_job(client, found.id))
    click.echo(client.logs(found.id), nl=False)


@click.command(short_help="Stop a running study, to be resumed later.")
@click.argument("study", type=STUDY_NAME)
@home_option
@click.option("--cell", metavar="ID", help="Stop only this running cell, as pruned; the study continues.")
@cluster_option(help=f"Use this if the study runs as a job. {CLUSTER_HELP}")
def stop(study: str, home: str, cell: str | None, cluster: str | None) -> None:
    """Ask a running STUDY to save its state and stop. Re-run `oec run` or `oec submit` to resume.

    This works on any machine that can write to the home, or with --cluster on any that can reach the cluster.
    """
    from service.home.location import open_home
    from service.sweep.stop import stop as stop_study

    from_environment = click.get_current_context().get_parameter_source("cluster") is ParameterSource.ENVIRONMENT
    here = not cluster or (from_environment and runs_in(home, study))
    done = stop_study(open_home(home), study, cell) if here else stop_job(str(cluster), study, cell)
    what = f"cell {cell}" if cell else study
    click.echo(f"{what} has stopped" if done else f"{what} was asked to stop, and has not stopped yet")


def follow_job(client: Jobs, job: str) -> int:
    """Print a job's output until it ends; returns its exit code."""
    try:
        for piece in client.follow(job):
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo(f"\n{job} continues; to watch it again, run `oec logs {job} --follow`")
        return EXIT_DETACHED
    return exit_code(client.get(job))


def exit_code(ended: JobInfo) -> int:
    """The exit code of the study; bad input if the job never started, interrupted if its driver was lost."""
    from service.cluster.jobs import EXIT_COMMAND_NOT_FOUND

    if ended.exit_code in (None, EXIT_COMMAND_NOT_FOUND):
        click.echo(f"oec: job {ended.id} {ended.status.lower()}: {ended.message}", err=True)
        return exit_codes.BAD_INPUT if ended.exit_code else exit_codes.INTERRUPTED
    return ended.exit_code or 0


def stop_job(cluster: str, study: str, cell: str | None) -> bool:
    """Stop the study through its home if this machine can access it, otherwise through the job; returns whether it has
    stopped.

    Raises:
        InvalidInput: no job runs the study, or a cell is to be stopped in a home that this machine cannot access.
    """
    from service.background import wait_until
    from service.cluster.jobs import Jobs
    from service.home.location import open_home
    from service.sweep.stop import stop as stop_study

    client = Jobs(cluster)
    job = next((job for job in client.all() if job.study == study and job.is_active), None)
    if job is None:
        raise InvalidInput("STUDY", study, "is not running as a job on this cluster", "`oec jobs` lists the jobs")
    if job.home and runs_in(job.home, study):
        return stop_study(open_home(job.home), study, cell)
    if cell:
        problem = "is in a home that this machine cannot access"
        raise InvalidInput("--cell", cell, problem, "run the command on one that can")
    client.stop(job.id)
    return wait_until(lambda: not client.get(job.id).is_active, STOP_TIMEOUT_S, POLL_S)


def runs_in(home: str, study: str) -> bool:
    """Whether the study is running in a home that this machine can access."""
    from service.home.layout import Home
    from service.home.location import local_folder, open_home
    from service.home.studies import is_running
    from trainers.storage.bucket import is_bucket

    if is_bucket(home):
        try:
            return is_running(open_home(home), study)
        except InvalidInput:  # for example without credentials for the bucket
            return False
    place = Home(local_folder(home))
    return place.ledger(study).is_file() and is_running(place, study)


def label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not (key and value):
        remedy = "write KEY=VALUE, as in `ray start --labels`"
        raise InvalidInput("--driver-label", text, "is not a valid label", remedy)
    return key, value

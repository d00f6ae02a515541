"""Connecting to a Ray cluster: one at a given address, or a local one that starts with this process."""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Callable
from contextlib import chdir, suppress
from functools import partial
from pathlib import Path

from search_spaces.errors import InvalidInput
from service.background import BackgroundThread
from service.cluster import ray_start
from service.cluster.placement import Node, joined_nodes, parse_nodes
from service.home.location import scratch

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # even on loopback, which other users of the machine can reach
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per worker group, of no use outside preemptible nodes
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # after this, Ray replaces the group of a silent worker
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",  # default: 60; on a busy machine its imports alone take a minute
    "RAY_gcs_server_port_wait_time_s": "120",  # default: 30, for the same reason
    "RAY_worker_register_timeout_seconds": "240",  # default: 60, for the same reason
    "RAY_prestart_worker_first_driver": "0",  # one worker per core, unused: Tune's trials have another environment
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",  # default: patch, which nothing that we send depends on
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and MLflow are the logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # service.sweep.stop handles Ctrl-C
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a sweep resumes from the ledger, not from Tune's own state
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT_S = 5.0
HEAD_POLL_S, HEAD_LOST_S = 2.0, 20.0
"""How often the head is checked, and how long it may be unreachable."""
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
"""The folder that contains the packages of this project. Ray puts the driver's working directory first on the import
path of its workers, so a driver connects from here. Otherwise a folder in the user's working directory, such as
``trainers`` or ``datasets``, would be imported instead of ours or of a library."""
COMMAND = "oec_sensitivity"
"""The module of the command ``oec``. A driver that it started has its workers import our packages as it does: also if
others come first in ``PYTHONPATH`` or in the working directory of a Ray job."""
MAX_START_ATTEMPTS = 5
"""Ray gives its processes 30 s to start, and two of its agents import many Python packages in that time."""

logger = logging.getLogger(__name__)


def resolve_address(address: str | None) -> str | None:
    """The cluster to join: the one given, or ``RAY_ADDRESS`` (set within a Ray job). None means a local cluster."""
    return address or os.environ.get("RAY_ADDRESS") or None


def configure_ray() -> None:
    """Set Ray's environment variables, except those that the user has set. Call this before Ray is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(
    address: str | None,
    log: Callable[[str], None] = logger.info,
    is_interrupted: Callable[[], bool] = lambda: False,
    *,
    installed: bool = True,
) -> None:
    """Join the cluster at ``address``, or start a local cluster with all cores of this machine.

    ``start_local_cluster`` describes ``log`` and ``is_interrupted``.

    Args:
        installed: whether the nodes must have this package, see ``COMMAND``.

    Raises:
        InvalidInput: there is no cluster at the address, or no local cluster starts.
    """
    configure_ray()
    import ray

    joined = resolve_address(address)
    if joined and joined.startswith("ray://"):
        remedy = "give the cluster's own address (host:6379) from a machine in its network, or submit a Ray job"
        raise InvalidInput("--address", joined, "is a Ray Client address, which a sweep cannot use", remedy)
    if not joined:
        start_local_cluster(log, is_interrupted)
        return
    try:
        check_port(joined)
        host, _, port = joined.rpartition(":")
        if host in (LOOPBACK, "localhost"):  # processes on other nodes need the address of this one
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        environment = cluster_environment(f"{host}:{port}" if host else joined)
        with chdir(PACKAGE_ROOT):
            runtime_env = {"env_vars": environment, **(worker_setup() if installed else {})}
            ray.init(address=joined, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        message = str(error)
        if message.startswith("Version mismatch"):
            problem = f"is a cluster of other versions. {ray_start.one_line(message)}"
            remedy = "use the versions of the cluster, or run the study there as a job with `oec submit`"
            raise InvalidInput("--address", joined, problem, remedy) from error
        reason = message.partition("\n")[0]
        remedy = "start the cluster, or omit the address to use a local cluster"
        raise InvalidInput("--address", joined, f"is not a Ray cluster ({reason})", remedy) from error


def ensure_private_token() -> None:
    """Create Ray's token in ``~/.ray``, readable by this user only: Ray itself makes the file readable for everyone.

    A token from the environment takes its place. Where a user has no home, as in many containers, the token is in
    ``scratch``, and this process and its children learn that from ``RAY_AUTH_TOKEN_PATH``.

    Raises:
        InvalidInput: neither folder is writable.
    """
    if any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    with suppress(OSError, RuntimeError):  # RuntimeError: neither HOME nor the user database has a home
        _create_token(Path.home() / ".ray" / "auth_token")
        return
    try:
        path = scratch() / "ray_auth_token"
        _create_token(path)
    except (OSError, InvalidInput) as error:
        problem = f"is not set, and Ray's token can neither be in ~/.ray nor in OEC_SCRATCH ({error})"
        remedy = "set it to a file of your own with a secret in it"
        raise InvalidInput("RAY_AUTH_TOKEN_PATH", None, problem, remedy) from error
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _create_token(path: Path) -> None:
    """Write a new token, unless there is one."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        with open(path, "x", opener=partial(os.open, mode=0o600)) as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        path.chmod(0o600)


def start_local_cluster(log: Callable[[str], None], is_interrupted: Callable[[], bool]) -> None:
    """Start a cluster with all cores of this machine, which ends with this process.

    Args:
        log: receives one line per attempt, and one with the reason of each failure.
        is_interrupted: checked after each failed attempt; if true, return without a cluster.

    Raises:
        InvalidInput: Ray did not start in ``MAX_START_ATTEMPTS`` attempts, or for a reason that no other attempt can
            fix.
    """
    import ray

    name, folder = ray_start.temporary_folder()
    ray_start.check_path(name, folder)
    ray_start.check_folder(name, folder)
    ensure_private_token()
    cores = local_cores()
    for attempt in range(1, MAX_START_ATTEMPTS + 1):
        suffix = f", attempt {attempt} of {MAX_START_ATTEMPTS}" if attempt > 1 else ""
        log(f"starting Ray on {cores} cores of this machine{suffix}")
        port = free_port()
        inherited = {
            "RAY_GCS_SERVER_PORT": str(port),
            **ray_start.folder_environment(folder),
            **cluster_environment(f"{LOOPBACK}:{port}"),
        }
        before = {variable: os.environ[variable] for variable in inherited if variable in os.environ}
        os.environ.update(inherited)
        watch = ray_start.StartWatch(folder, log)
        try:
            with watch, chdir(PACKAGE_ROOT):
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=True,  # on loopback; its State API frees the cores of a dead trial
                    runtime_env=worker_setup(),
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,  # an error is logged below, as the reason of a failed attempt
                )
            logging.getLogger("ray").setLevel(logging.ERROR)
            return
        except Exception as error:  # Ray re-raises the errors of its processes, or a plain Exception on a timeout
            ray.shutdown()
            watch.terminate()
            message = str(error).strip() or type(error).__name__
            cause = ray_start.failure_cause(message, watch.log_folders()) or message.splitlines()[0]
            if permanent := ray_start.permanent_error(cause, name, folder):
                raise permanent from error
            if attempt == MAX_START_ATTEMPTS:
                raise ray_start.start_error("--address", cause, "and run the same command again") from error
            log(f"Ray did not start: {ray_start.one_line(cause)}")
            if is_interrupted():
                return
        finally:
            for variable in inherited:
                os.environ.pop(variable)
            os.environ.update(before)


def worker_setup() -> dict[str, str]:
    """The part of Ray's runtime environment that makes workers import our packages, see ``COMMAND``."""
    return {"worker_process_setup_hook": f"{COMMAND}.import_own_packages"} if COMMAND in sys.modules else {}


def cluster_environment(address: str) -> dict[str, str]:
    """Environment variables that tell the processes of a cluster its address.

    Without them, the process of Ray Train that frees the cores of a dead trial connects to any cluster on this machine.
    If that is the wrong cluster, it takes the worker group for dead.
    """
    return {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": ""}  # the second one would take precedence


def free_port() -> int:
    """A free port below the range from which the kernel assigns ports to outgoing connections, so that none of those
    takes the port before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)):  # the connection failed: nobody listens there
                return port


def check_port(address: str) -> None:
    """Check that a server listens at ``host:port``; otherwise ``ray.init`` would wait for minutes.

    Raises:
        OSError: no server listens there.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


class HeadWatch(BackgroundThread):
    """Calls ``on_lost`` when the head of the cluster has been unreachable for ``HEAD_LOST_S``.

    Ray itself would wait for a minute and then end the process with exit code 1, whatever it is doing.
    """

    def __init__(self, address: str, on_lost: Callable[[], None]) -> None:
        super().__init__("head-watch")
        self._address, self._on_lost = address, on_lost

    def _run(self) -> None:
        last_reached = time.monotonic()
        while not self._over.wait(HEAD_POLL_S):
            try:
                check_port(self._address)
                last_reached = time.monotonic()
            except OSError:
                if time.monotonic() - last_reached > HEAD_LOST_S:
                    self._on_lost()
                    return


def local_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_nodes() -> list[Node]:
    """The nodes of a local cluster, with its GPUs as Ray counts them; without importing torch."""
    return [{"CPU": local_cores(), "GPU": len(list(Path("/proc/driver/nvidia/gpus").glob("*")))}]


def cluster_nodes(text: str) -> list[Node]:
    """The nodes of the cluster that ``text`` describes (see ``parse_nodes``) or that has this address (``connect``)."""
    if "=" in text or ":" not in text:
        return parse_nodes(text)
    connect(text)
    import ray

    try:
        return joined_nodes()
    finally:
        ray.shutdown()

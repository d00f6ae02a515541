"""The Ray cluster: the one we are told of, or an embedded one."""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

from search_spaces.errors import InvalidInput
from service.background import BackgroundThread
from service.cluster import ray_start
from service.cluster.placement import Node, declared, joined_nodes

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # even on loopback: other users of the machine have no business here
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a laptop is not preempted; it costs a process a group
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # a worker that does not answer so long: its group is replaced
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",  # of 60; on a busy machine its imports alone take a minute
    "RAY_gcs_server_port_wait_time_s": "120",  # of 30, likewise
    "RAY_worker_register_timeout_seconds": "240",  # of 60, likewise
    "RAY_prestart_worker_first_driver": "0",  # a worker a core that nobody takes, as Tune gives ours an environment
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and MLflow are the logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours, see service.sweep.sweep
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a sweep resumes from the ledger, not from Tune's own state
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT_S = 5.0
LOOK_S, LOST_S = 2.0, 20.0
"""How often the head is looked for, and how long it may be away."""
PACKAGES = Path(__file__).resolve().parents[2]
"""Where the packages of this project are. Ray puts the driver's working directory in front of its workers' import path,
so a driver connects from here: a package of the same name in the folder where someone stands, ``trainers`` say, would
be imported in the place of ours."""
STARTS = 5
"""How often an embedded cluster is tried: Ray gives its processes 30 s, in which two agents import Python packages."""

logger = logging.getLogger(__name__)


def address(given: str | None) -> str | None:
    """The cluster to join: the one given, ``RAY_ADDRESS`` (set within a Ray job), or None for an embedded one."""
    return given or os.environ.get("RAY_ADDRESS") or None


def configure() -> None:
    """Set what Ray reads from the environment, most of it as early as at its import; what the user set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(
    given: str | None,
    report: Callable[[str], None] = logger.info,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Join the cluster, or start an embedded one on all cores of this machine.

    Args:
        report: see ``start``.
        interrupted: see ``start``.

    Raises:
        InvalidInput: there is no cluster at the address, or none starts here.
    """
    configure()
    import ray

    joined = address(given)
    if joined and joined.startswith("ray://"):
        remedy = "give the cluster's own address (host:6379) from a machine of its network, or submit a Ray job"
        raise InvalidInput("--address", joined, "is a Ray Client address, which a sweep can not use", remedy)
    if not joined:
        start(report, interrupted)
        return
    try:
        reach(joined)
        with chdir(PACKAGES):
            ray.init(
                address=joined,
                runtime_env={"env_vars": whereabouts(seen_from_elsewhere(joined))},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).splitlines()[0]
        remedy = "start it, or leave the address out for a cluster of this machine's own"
        raise InvalidInput("--address", joined, f"is no Ray cluster ({reason})", remedy) from error


def private_token() -> None:
    """Make Ray's token, in ``~/.ray``, where no other user of the machine can read it; Ray itself makes it readable.

    One that was given by the environment is left alone.

    Raises:
        InvalidInput: the folder cannot be written.
    """
    if any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    except OSError as error:
        problem = f"cannot be written ({error.strerror}), and Ray's token belongs there"
        remedy = "set HOME to a folder that can be written, or RAY_AUTH_TOKEN to a secret of your own"
        raise InvalidInput("HOME", str(path.parent), problem, remedy) from error
    with os.fdopen(file, "w") as out:
        out.write(secrets.token_hex(32))


def start(report: Callable[[str], None], interrupted: Callable[[], bool]) -> None:
    """An embedded cluster on all cores of this machine.

    Args:
        report: gets a line for every try, and for why it failed.
        interrupted: whether to leave it at the tries so far, without a cluster.

    Raises:
        InvalidInput: its processes did not come up, ``STARTS`` times, or for a reason that no other try can mend.
    """
    import ray

    name, folder = ray_start.temporary_folder()
    ray_start.check_folder(name, folder)
    private_token()
    cores = local_cores()
    for number in range(1, STARTS + 1):
        report(f"starting Ray on {cores} cores of this machine" + (f", try {number} of {STARTS}" if number > 1 else ""))
        port = free_port()
        inherited = {"RAY_GCS_SERVER_PORT": str(port), **whereabouts(f"{LOOPBACK}:{port}")}
        before = {name: os.environ.get(name) for name in inherited}
        os.environ.update(inherited)
        watch = ray_start.StartWatch(folder, report)
        try:
            with watch, chdir(PACKAGES):
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=True,  # on loopback; a dead trial's cores are freed through its State API
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,  # its errors are told as the reason of the failed try
                )
            logging.getLogger("ray").setLevel(logging.ERROR)  # from here on nobody else tells them
            return
        except Exception as error:  # Ray raises what its processes died of, or plain Exception for a time-out
            ray.shutdown()
            watch.end()
            said = str(error).strip() or type(error).__name__
            reason = ray_start.cause(said, watch.logs()) or said.splitlines()[0]
            if refusal := ray_start.permanent(reason, name, folder):
                raise refusal from error
            if number == STARTS:
                remedy = "see that the machine has memory and processor time to spare; the same command goes on"
                problem = f"no Ray cluster started here ({ray_start.line(reason)})"
                raise InvalidInput("--address", None, problem, remedy) from error
            report(f"Ray did not start: {ray_start.line(reason)}")
            if interrupted():
                return
        finally:
            for variable, value in before.items():
                os.environ.pop(variable)
                if value is not None:
                    os.environ[variable] = value


def whereabouts(address: str) -> dict[str, str]:
    """What tells the processes of a cluster which one is theirs.

    Without it those of Ray Train that free the cores of a dead trial look for any cluster of this machine, and take a
    group for dead of which another cluster does not know.
    """
    return {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": ""}  # the second would go before the first


def seen_from_elsewhere(joined: str) -> str:
    """An address of this machine's loopback by the address that Ray gives this node; any other as it is."""
    import ray

    host, colon, port = joined.rpartition(":")
    if not colon or host not in (LOOPBACK, "localhost"):
        return joined
    return f"{ray.util.get_node_ip_address()}:{port}"  # type: ignore[no-untyped-call]


def free_port() -> int:
    """One below those that the kernel gives to outgoing connections, which may take such a one before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as asking:
            if asking.connect_ex((LOOPBACK, port)):  # nobody listens there
                return port


def reach(joined: str) -> None:
    """See that something listens at ``host:port``; ``ray.init`` waits for minutes where nothing does.

    Raises:
        OSError: nothing listens there.
    """
    host, _, port = joined.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


class HeadWatch(BackgroundThread):
    """Calls ``lost`` once the cluster's head has not been reachable for ``LOST_S``.

    Ray itself looks for it for a minute and then ends the process, whatever it is doing, with exit code 1.
    """

    def __init__(self, head: str, lost: Callable[[], None]) -> None:
        super().__init__("head-watch")
        self._head, self._lost = head, lost

    def _run(self) -> None:
        reached = time.monotonic()
        while not self._over.wait(LOOK_S):
            try:
                reach(self._head)
                reached = time.monotonic()
            except OSError:
                if time.monotonic() - reached > LOST_S:
                    self._lost()
                    return


def local_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_gpus() -> int:
    """Accelerators of this machine, as an embedded cluster counts them; without importing torch."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def this_machine() -> list[Node]:
    """The nodes of an embedded cluster."""
    return [{"CPU": local_cores(), "GPU": local_gpus()}]


def nodes_of(text: str) -> list[Node]:
    """The nodes of a cluster that is declared, see ``placement.declared``, or that is at an address.

    Raises:
        InvalidInput: see ``placement.declared`` and ``connect``.
    """
    if "=" in text or ":" not in text:
        return declared(text)
    connect(text)
    import ray

    try:
        return joined_nodes()
    finally:
        ray.shutdown()

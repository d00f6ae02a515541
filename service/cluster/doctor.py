"""``oec doctor``: what a study would meet on this machine or on a cluster, one line each."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from rich.filesize import decimal

from search_spaces.errors import InvalidInput
from service.cluster import node_facts
from service.cluster.connection import configure_ray, connect
from service.cluster.jobs import connect_client
from service.cluster.node_facts import MARK, Facts
from service.cluster.ray_start import MAX_SOCKET_BYTES, MIN_FREE_BYTES, SHM_REMEDY, SOCKET, temporary_folder
from service.home.layout import Home
from service.home.location import local_folder
from service.mlflow.address import DEFAULT_PORTS, check_store, redact, tracking_uri
from trainers.storage.bucket import is_bucket

Status = Literal["ok", "warning", "problem"]

MIN_MEMORY, MIN_SHM = 2**30, 256 * 2**20
"""Below this, Ray and one small cell hardly fit: Ray's own processes take 0.8 GB, its object store is in /dev/shm."""
JOB_TIMEOUT_S, POLL_S = 180.0, 0.5


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor."""

    name: str
    status: Status = "ok"
    text: str
    """What was found; for a problem, what is wrong."""
    remedy: str = ""


def examine(facts: Facts, joins: Facts | None = None) -> Iterator[Check]:
    """The checks of a machine or cluster.

    Args:
        facts: see ``node_facts.cluster_facts``.
        joins: the facts of this machine, if it would join the cluster.
    """
    driver = facts["driver"]
    nodes = [node for node in facts["nodes"] if not node["problem"]]
    if silent := [node for node in facts["nodes"] if node["problem"]]:
        text = _named(silent, lambda node: node["problem"])
        yield Check(name="nodes", status="problem", text=text, remedy="check the logs of Ray there, or remove the node")
    if not nodes:
        return
    yield _versions(nodes, joins, "python", _minor)
    for package in node_facts.PACKAGES:
        yield _versions(nodes, joins, package, str if package == "ray" else None)
    cores, gpus = (sum(node["resources"].get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    yield Check(name="devices", text=f"{cores:g} cores and {gpus:g} GPUs on {_count(nodes)}")
    yield _room(nodes, "memory", "memory_free", MIN_MEMORY, "free memory, or use a larger machine")
    yield _room(nodes, node_facts.SHM, "shm_free", MIN_SHM, SHM_REMEDY)
    yield _temporary(nodes)
    yield _home(driver, nodes)
    yield _mlflow(driver["mlflow"], driver["mlflow_problem"])
    yield _tokenizer(nodes)
    found = ", ".join(driver["data"] or ())
    none = "none in the home yet; a study prepares its own, unless its source is shards"
    yield Check(name="data", text=f"in the home: {found}" if found else none)
    yield from _proxy(driver["hosts"])


def _versions(nodes: list[Facts], joins: Facts | None, name: str, part: Callable[[str], str] | None) -> Check:
    """One version on all nodes is ok; a difference in its ``part`` is a problem, any other difference a warning."""
    texts = {node[name] or "not installed" for node in nodes}
    text = texts.pop() if len(texts) == 1 else _named(nodes, lambda node: node[name] or "not installed")
    found = {node[name] for node in nodes}
    if None in found:
        remedy = "install it there, or bring it with `oec submit --working-dir` and a runtime environment"
        return Check(name=name, status="problem", text=text, remedy=remedy)
    if joins and part and part(joins[name] or "") not in map(part, found):
        text += f"; here {joins[name]}"
        found.add(joins[name] or "")
    if part and len(set(map(part, found))) > 1:
        return Check(name=name, status="problem", text=text, remedy="install the version of the head everywhere")
    if len(found) > 1:
        remedy = "use one version everywhere, because results may differ in rounding"
        return Check(name=name, status="warning", text=text, remedy=remedy)
    return Check(name=name, text=text)


def _room(nodes: list[Facts], name: str, key: str, least: int, remedy: str) -> Check:
    known = [node for node in nodes if node[key] is not None]
    if low := [node for node in known if node[key] < least]:
        text = f"{_named(low, lambda node: decimal(node[key]))} free, below {decimal(least)}"
        return Check(name=name, status="problem", text=text, remedy=remedy)
    text = f"at least {decimal(min(node[key] for node in known))} free" if known else "unknown on this system"
    return Check(name=name, text=text)


def _temporary(nodes: list[Facts]) -> Check:
    name, remedy = "temporary folder", "set RAY_TMPDIR to a writable folder with a short path and room"
    if bad := [node for node in nodes if _folder_problem(node["temporary"])]:
        text = _named(bad, lambda node: _folder_problem(node["temporary"]))
        return Check(name=name, status="problem", text=text, remedy=remedy)
    free = decimal(min(node["temporary"]["free"] for node in nodes))
    paths = sorted({node["temporary"]["path"] for node in nodes})
    return Check(name=name, text=f"{', '.join(paths)} with at least {free} free")


def _folder_problem(folder: Facts) -> str:
    path = folder["path"]
    if (length := len(os.fsencode(path + SOCKET.format(pid=1)))) > MAX_SOCKET_BYTES:
        return f"{path} is too long: a socket of Ray in it has {length} bytes, and the limit is {MAX_SOCKET_BYTES}"
    if folder["problem"]:
        return f"{path} is not writable ({folder['problem']})"
    return f"{path} has {decimal(folder['free'])} free" if folder["free"] < MIN_FREE_BYTES else ""


def _home(driver: Facts, nodes: list[Facts]) -> Check:
    home = driver["home"]
    if not home:
        remedy = "give --home, or set OEC_HOME where the head starts"
        return Check(name="home", status="problem", text="is not set", remedy=remedy)
    remedy = "put it on storage that every node mounts at this path, or in a bucket that all can use"
    if driver["home_problem"]:
        text = f"{home} on the node of the driver: {driver['home_problem']}"
        return Check(name="home", status="problem", text=text, remedy=remedy)
    if bad := [node for node in nodes if node["home_problem"]]:
        text = f"{home}: {_named(bad, lambda node: node['home_problem'])}"
        return Check(name="home", status="problem", text=text, remedy=remedy)
    if "://" in home:
        return Check(name="home", text=f"{home} is a bucket, which `oec run` checks on every node")
    return Check(name="home", text=f"{home} is writable from {_count(nodes)}")


def _mlflow(store: str, problem: str) -> Check:
    remedy = "start the server, or unset MLFLOW_TRACKING_URI"
    if problem:
        return Check(name="MLflow", status="problem", text=f"{store}: {problem}", remedy=remedy)
    return Check(name="MLflow", text=store)


def _tokenizer(nodes: list[Facts]) -> Check:
    missing = [node for node in nodes if not node["tokenizer"]]
    if not missing:
        return Check(name="tokenizer", text=f"GPT-2's is in the cache of {_count(nodes)}")
    remedy = "a study that needs it downloads it; without a network, set TIKTOKEN_CACHE_DIR to a folder that has it"
    text = f"GPT-2's is not in {_named(missing, lambda node: node['tokenizer_cache'] or 'the default cache')}"
    return Check(name="tokenizer", status="warning", text=text, remedy=remedy)


def _proxy(hosts: Iterable[str]) -> Iterator[Check]:
    """A line only if the environment names a proxy: an inner address must not go through it."""
    if not (proxies := {kind: url for kind, url in getproxies().items() if kind != "no"}):
        return
    if through := sorted({host for host in hosts if not proxy_bypass(host)}):
        text = f"requests to {', '.join(through)} would go through {', '.join(sorted(set(proxies.values())))}"
        yield Check(name="proxy", status="warning", text=text, remedy=f"add {','.join(through)} to NO_PROXY")
    else:
        yield Check(name="proxy", text="set, and not used for the cluster and MLflow")


def _named(nodes: list[Facts], what: Callable[[Facts], str]) -> str:
    """``3.11.7 (10.0.0.1, 10.0.0.2), 3.11.9 (10.0.0.3)``."""
    addresses: dict[str, list[str]] = {}
    for node in nodes:
        addresses.setdefault(what(node), []).append(node["address"])
    return ", ".join(f"{text} ({', '.join(where)})" for text, where in addresses.items())


def _count(nodes: list[Facts]) -> str:
    return f"all {len(nodes)} nodes" if len(nodes) > 1 else str(nodes[0]["address"])


def _minor(version: str) -> str:
    return version.rpartition(".")[0]


def diagnose(home: Home | None, given: str | None, cluster: str | None) -> list[Check]:
    """Every check of this machine, or of the cluster at an address.

    Args:
        home: the home, opened on this machine; None if only the cluster can see it.
        given: the home as it was given, for the nodes of the cluster.
        cluster: ``http://HOST:8265``, or ``HOST:PORT`` of a cluster that this machine can join.

    Raises:
        InvalidInput: there is no cluster at the address, or the home of a cluster is a relative path.
    """
    if cluster and given and not is_bucket(given):
        given = str(local_folder(given))
        if not Path(given).is_absolute():
            remedy = "give an absolute path on storage that every node of the cluster sees"
            raise InvalidInput("--home", given, "is a relative path, which leads elsewhere on the cluster", remedy)
    here = node_facts.node_facts()
    uri = tracking_uri(home) if home else tracking_uri(Home(Path(given or "oec-home")))
    server = urlsplit(uri)
    port = server.port or DEFAULT_PORTS.get(server.scheme.partition("+")[0])
    mlflow = f"{server.hostname}:{port}" if server.hostname and port else None
    if cluster is None:
        facts = local_facts(home, here)
    else:
        ask = ask_as_job if cluster.startswith(("http://", "https://")) else ask_as_driver
        facts = ask(cluster, given, mlflow)
    hosts = [urlsplit(cluster if "://" in cluster else f"//{cluster}").hostname] if cluster else []
    facts["driver"] |= {"mlflow": redact(uri), "hosts": [*filter(None, [*hosts, server.hostname])]}
    if cluster is None:
        try:
            check_store(uri)
        except InvalidInput as error:
            facts["driver"]["mlflow_problem"] = error.problem
    return list(examine(facts, here if cluster and "://" not in cluster else None))


def local_facts(home: Home | None, here: Facts) -> Facts:
    """The facts of this machine, on which a study would start a local cluster."""
    node = here | {"address": "this machine", "problem": "", "home_problem": ""}
    node["resources"] = {"CPU": here["cores"], "GPU": here["gpus"]}
    folder = temporary_folder()[1]
    node["temporary"] = node_facts.folder_facts(folder) | {"path": str(folder / "ray")}
    path = str(home.path) if home else None
    driver = {"home": str(home) if home else None, "home_problem": "", "mlflow_problem": ""}
    return {"driver": driver | {"data": node_facts.data_folders(path)}, "nodes": [node]}


def ask_as_driver(address: str, home: str | None, mlflow: str | None) -> Facts:
    """Join the cluster and ask its nodes."""
    connect(address, installed=False)
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(node_facts)  # type: ignore[no-untyped-call]  # the nodes may lack this package
    try:
        return node_facts.cluster_facts(home, mlflow)
    finally:
        ray.shutdown()


def ask_as_job(url: str, home: str | None, mlflow: str | None) -> Facts:
    """Run ``node_facts`` as a job on the cluster.

    Raises:
        InvalidInput: the job failed, or gave no answer within ``JOB_TIMEOUT_S``.
    """
    configure_ray()
    client = connect_client(url)
    arguments = json.dumps({"home": home, "mlflow": mlflow})
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(node_facts.__file__, folder)
        command = f"python {Path(node_facts.__file__).name} {shlex.quote(arguments)}"
        job = client.submit_job(entrypoint=command, runtime_env={"working_dir": folder}, entrypoint_num_cpus=0)
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    answers = [line for line in client.get_job_logs(job).splitlines() if line.startswith(MARK)]
    if not answers:
        client.stop_job(job)
        lines = (client.get_job_info(job).message or "no answer").strip().splitlines()
        remedy = "check that `python` on the head is that of Ray, and the logs of the head"
        raise InvalidInput("--cluster", url, f"cannot run a job ({lines[-1]})", remedy)
    facts: Facts = json.loads(answers[-1].removeprefix(MARK))
    return facts


def as_json(checks: Iterable[Check]) -> dict[str, Any]:
    """The checks as JSON: ``ok`` is whether there is no problem."""
    listed = list(checks)
    return {"ok": not has_problem(listed), "checks": [asdict(check) for check in listed]}


def has_problem(checks: Iterable[Check]) -> bool:
    return any(check.status == "problem" for check in checks)

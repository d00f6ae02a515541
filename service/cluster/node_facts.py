"""What ``oec doctor`` asks every node of a cluster: versions, memory, folders, and whether the home is shared.

This file runs by itself, as ``python node_facts.py JSON``, on nodes that may lack this package and every other one but
Ray. It therefore imports only the standard library and Ray.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import socket
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("oec-sensitivity", "torch", "ray")
TIMEOUT_S, VISIBLE_S, CONNECT_S = 90.0, 5.0, 5.0
"""Timeouts for a node's response, for a file to become visible on network storage, and for a connection."""
MARK = "OEC-DOCTOR "
"""Before the result on standard output, where Ray may print lines of its own."""
SHM = "/dev/shm"
RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
"""GPT-2's tokenizer, as tiktoken downloads it. The name of its file in a cache is the SHA-1 of this address."""

Facts = dict[str, Any]


def node_facts(home: str | None = None, word: str | None = None, name: str = "node") -> Facts:
    """The facts of the machine that this runs on.

    Args:
        home: a folder; this reads the file ``driver`` of a probe in it, and writes one with its own name.
        word: the content of those files.
    """
    memory = dict(line.split(":") for line in _text("/proc/meminfo").splitlines())
    kib = {key: int(value.split()[0]) for key, value in memory.items()}
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        "memory_free": 1024 * kib["MemAvailable"] if "MemAvailable" in kib else None,
        "shm_free": shutil.disk_usage(SHM).free if Path(SHM).is_dir() else None,
        "tokenizer": tokenizer(),
        "tokenizer_cache": os.environ.get("TIKTOKEN_CACHE_DIR"),
        "home_problem": _probe(Path(home), word, name) if home and word else "",
    }


def folder_facts(folder: Path) -> Facts:
    """The length and room of a temporary folder, and why it cannot be written."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return {"path": str(folder), "free": shutil.disk_usage(folder).free, "problem": ""}
    except OSError as error:
        return {"path": str(folder), "free": 0, "problem": error.strerror or type(error).__name__}


def tokenizer() -> str | None:
    """The file with GPT-2's tokenizer in a cache of tiktoken; None if it would have to be downloaded."""
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = Path(cache) if cache else Path(tempfile.gettempdir()) / "data-gym-cache"
    path = folder / hashlib.sha1(RANKS_URL.encode()).hexdigest()
    return str(path) if path.is_file() else None


def data_folders(home: str | None) -> list[str] | None:
    """Names of the token files in the home that are complete; None without a home."""
    return sorted(path.parent.name for path in Path(home).glob("data/*/manifest.json")) if home else None


def unreachable(address: str | None) -> str:
    """Why nothing answers at ``host:port``; empty if something does, or without an address."""
    if not address:
        return ""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        return str(error)
    return ""


def cluster_facts(home: str | None, mlflow: str | None) -> Facts:
    """The facts of the driver's node and of every node of the cluster that this process has joined.

    Args:
        home: a folder that every node should see, or a bucket, which is not probed; default: the driver's ``OEC_HOME``.
        mlflow: ``host:port`` of the MLflow server that the driver will use.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    home, word = home or os.environ.get("OEC_HOME"), secrets.token_hex(8)
    probe = Path(home) / f".doctor-{word}" if home and "://" not in home else None
    driver: Facts = {"home": home, "home_problem": _start(probe, word), "mlflow_problem": unreachable(mlflow)}
    driver |= {"data": data_folders(home)}
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    shared = str(probe) if probe and not driver["home_problem"] else None
    task = ray.remote(num_cpus=0, max_retries=0)(_on_node)
    started = []
    for node in alive:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        temporary = node["ObjectStoreSocketName"].partition("/session_")[0]
        started.append(task.options(scheduling_strategy=place).remote(shared, word, node["NodeID"], temporary))
    ray.wait(started, num_returns=len(started), timeout=TIMEOUT_S)
    nodes = []
    for node, answer in zip(alive, started, strict=True):
        facts = {"address": node["NodeManagerAddress"], "resources": node["Resources"], "problem": ""}
        try:
            found: Facts = ray.get(answer, timeout=1.0)
            facts |= found
        except ray.exceptions.GetTimeoutError:
            facts["problem"] = f"does not answer within {TIMEOUT_S:g} s"
        except ray.exceptions.RayError as error:
            facts["problem"] = str(error).strip().splitlines()[-1]
        if shared and not facts["problem"] and not facts["home_problem"]:
            facts["home_problem"] = _unseen(Path(shared) / node["NodeID"], word)
        nodes.append(facts)
    if probe:
        shutil.rmtree(probe, ignore_errors=True)
    return {"driver": driver, "nodes": nodes}


def _on_node(home: str | None, word: str, name: str, temporary: str) -> Facts:
    return node_facts(home, word, name) | {"temporary": folder_facts(Path(temporary))}


def _start(probe: Path | None, word: str) -> str:
    """Create a probe; returns the problem, or an empty string."""
    if probe is None:
        return ""
    try:
        probe.mkdir(parents=True)
        (probe / "driver").write_text(word)
    except OSError as error:
        return f"cannot write: {error.strerror}"
    return ""


def _probe(home: Path, word: str, name: str) -> str:
    """Read the driver's file and write one; returns the problem, or an empty string."""
    if problem := _unseen(home / "driver", word):
        return problem
    try:
        (home / name).write_text(word)
    except OSError as error:
        return f"cannot write: {error.strerror}"
    return ""


def _unseen(path: Path, word: str) -> str:
    deadline = time.monotonic() + VISIBLE_S
    while True:
        try:
            problem = "" if path.read_text() == word else "has other content"
        except OSError as error:
            problem = error.strerror or type(error).__name__
        if not problem or time.monotonic() > deadline:
            return problem
        time.sleep(0.1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""


def main() -> None:
    import ray

    ray.init(address="auto", log_to_driver=False)
    print(f"{MARK}{json.dumps(cluster_facts(**json.loads(sys.argv[1])))}", flush=True)


if __name__ == "__main__":
    main()

"""Checks that every node of the cluster accesses the same home: each node writes a file, and the driver reads it."""

from __future__ import annotations

import secrets

from search_spaces.errors import InvalidInput
from service.background import wait_until
from service.home.layout import Home
from service.home.signals import SignalStore, signals

NODE_TIMEOUT_S, VISIBLE_TIMEOUT_S = 60.0, 5.0
"""Timeouts for a node's response, which mostly starts a process, and for a file to become visible."""
POLL_S = 0.05


def check_shared(home: Home) -> None:
    """Check that every node of the connected cluster can run our code, and read and write this home.

    Raises:
        InvalidInput: a node cannot; the message lists each such node with its problem.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    word = secrets.token_hex(8)
    store = signals(home, f".probe-{word}")
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    try:
        store.write("driver", word)
        task = ray.remote(num_cpus=0, max_retries=0)(probe)
        probes = {
            node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                store, word, node
            )
            for node in addresses
        }
        ray.wait(list(probes.values()), num_returns=len(probes), timeout=NODE_TIMEOUT_S)
        unable, failed = [], []
        for node, address in sorted(addresses.items(), key=lambda of_node: of_node[1]):
            try:
                if problem := probe_result(probes[node]) or why_unseen(store, node, word):
                    failed.append(f"{address} ({problem})")
            except ray.exceptions.RayError as error:  # its process did not start, or lacks the package
                unable.append(f"{address} ({str(error).splitlines()[-1]})")
    finally:
        store.clear()
    if unable:
        joined = ray.get_runtime_context().gcs_address
        problem = f"has nodes that cannot run this package: {', '.join(unable)}"
        remedy = f"`oec doctor --cluster {joined}` says what they lack; `oec submit --working-dir` can bring it"
        raise InvalidInput("--address", joined, problem, remedy)
    if failed:
        problem = f"is not seen by node{'s' if len(failed) > 1 else ''} {', '.join(failed)}"
        remedy = "put it on storage that every node mounts at this path, such as NFS, or in a bucket that all can use"
        raise InvalidInput("--home", str(home), problem, remedy)


def probe(store: SignalStore, word: str, node: str) -> str:
    """Runs on a node: read the driver's file and write one; returns the problem, or an empty string."""
    try:
        store.check()
        if problem := why_unseen(store, "driver", word):
            return problem
        store.write(node, word)
    except InvalidInput as error:
        return error.problem
    except OSError as error:
        return f"cannot write: {error.strerror}"
    return ""


def why_unseen(store: SignalStore, name: str, word: str) -> str:
    """Why the text ``name`` is not ``word`` after ``VISIBLE_TIMEOUT_S`` (network storage is slow); empty if it is."""
    problem = ""

    def holds() -> bool:
        nonlocal problem
        try:
            found = store.read(name)
            problem = "" if found == word else "No such file or directory" if found is None else "has other content"
        except OSError as error:
            problem = error.strerror or type(error).__name__
        return not problem

    wait_until(holds, VISIBLE_TIMEOUT_S, POLL_S)
    return problem


def probe_result(task: object) -> str:
    """The result of a node's probe, or that it took too long.

    Raises:
        ray.exceptions.RayError: the probe did not run.
    """
    import ray

    try:
        found: str = ray.get(task, timeout=POLL_S)  # type: ignore[call-overload]
        return found
    except ray.exceptions.GetTimeoutError:
        return f"no response within {NODE_TIMEOUT_S:g} s"

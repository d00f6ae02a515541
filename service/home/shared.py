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
    """Check that every node of the connected cluster can read and write this home.

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
        failed = sorted(
            f"{address} ({problem})"
            for node, address in addresses.items()
            if (problem := probe_result(probes[node]) or why_unseen(store, node, word))
        )
    finally:
        store.clear()
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
    """The result of a node's probe, or why there is none."""
    import ray

    try:
        found: str = ray.get(task, timeout=POLL_S)  # type: ignore[call-overload]
        return found
    except ray.exceptions.GetTimeoutError:
        return f"no response within {NODE_TIMEOUT_S:g} s"
    except ray.exceptions.RayError as error:  # its process did not start, or lacks the package
        return str(error).splitlines()[-1]

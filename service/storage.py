"""Where a home may be: a folder that every node of the cluster sees, shown by a file that each of them writes."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from search_spaces.errors import InvalidInput

NODE_S, SHOWN_S = 60.0, 5.0
"""How long a node may take to answer, most of it the start of a process there; and a file to be seen elsewhere."""
LOOK_S = 0.05
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the driver of a job."""
REMEDY = "put it on storage that every node mounts at this path, such as NFS"


def local(given: str) -> Path:
    """The folder that a path or a ``file:`` URL names.

    Raises:
        InvalidInput: a relative path within a Ray job, or another URL. A ledger is appended to, locked and synced,
            which object stores do not do.
    """
    url = urlsplit(given)
    if "://" not in given and url.scheme != "file":
        if IN_A_JOB in os.environ and not given.startswith(("/", "~")):
            problem = "is relative, and in a Ray job that is a folder of Ray's own, gone with the cluster"
            raise InvalidInput("--home", given, problem, "set OEC_HOME to an absolute path that every node sees")
        return Path(given)
    if url.scheme == "file" and url.netloc in ("", "localhost") and url.path.startswith("/"):
        return Path(unquote(url.path))
    if url.scheme == "file":
        raise InvalidInput("--home", given, "names no folder of this machine", "write file:///absolute/path")
    raise InvalidInput(
        "--home",
        given,
        "is no file system: a ledger is appended to, locked and synced, which object stores can not do",
        "mount one that can at the same path on every node (NFS, EFS, Filestore, Lustre, CephFS, or JuiceFS over the "
        "bucket; s3fs, gcsfuse and Mountpoint can not), and give that path",
    )


def check(home: Path) -> None:
    """See that every node of the cluster that this process has joined reads and writes the same home.

    Raises:
        InvalidInput: one does not; the message names each and what is wrong there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder = home / f".probe-{secrets.token_hex(8)}"
    word = folder.name
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    try:
        folder.mkdir()
        (folder / "driver").write_text(word)
        task = ray.remote(num_cpus=0, max_retries=0)(answer)
        asked = {
            node["NodeID"]: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(folder), word, node["NodeID"])
            for node in alive
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_S)
        wrong = {}
        for node in alive:
            problem = said(asked[node["NodeID"]]) or unseen(folder / node["NodeID"], word)
            if problem:
                wrong[node["NodeID"]] = f"{node['NodeManagerAddress']} ({problem})"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if wrong:
        nodes = f"node{'s' if len(wrong) > 1 else ''} {', '.join(sorted(wrong.values()))}"
        raise InvalidInput("--home", str(home), f"is not seen by {nodes}", REMEDY)


def answer(folder: str, word: str, node: str) -> str:
    """On a node: read what the driver wrote and write a file of its own; what went wrong, if anything did."""
    if problem := unseen(Path(folder) / "driver", word):
        return problem
    try:
        (Path(folder) / node).write_text(word)
    except OSError as error:
        return f"can not write: {error.strerror}"
    return ""


def unseen(file: Path, word: str) -> str:
    """Why a file does not hold the word, after ``SHOWN_S``; network file systems take their time."""
    problem = ""

    def holds() -> bool:
        nonlocal problem
        try:
            problem = "" if file.read_text() == word else "holds something else"
        except OSError as error:
            problem = error.strerror or type(error).__name__
        return not problem

    until(holds, SHOWN_S)
    return problem


def said(task: object) -> str:
    """What a node answered; why it did not."""
    import ray

    try:
        found: str = ray.get(task, timeout=LOOK_S)  # type: ignore[call-overload]
        return found
    except ray.exceptions.GetTimeoutError:
        return f"no answer in {NODE_S:g} s"
    except ray.exceptions.RayError as error:  # its process did not come up, or has no such package
        return str(error).splitlines()[-1]


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(LOOK_S)

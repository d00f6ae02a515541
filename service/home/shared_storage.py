"""Where a home may be: a folder that every node of the cluster sees, shown by a file that each of them writes."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from search_spaces.errors import InvalidInput
from service.home.signals import Texts
from trainers.storage.bucket import is_bucket

if TYPE_CHECKING:
    from service.home.layout import Home

NODE_S, SHOWN_S = 60.0, 5.0
"""How long a node may take to answer, most of it the start of a process there; and a file to be seen elsewhere."""
LOOK_S = 0.05
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the driver of a job."""
REMEDY = "put it on storage that every node mounts at this path, such as NFS, or into a bucket that every node may use"


def local(given: str) -> Path:
    """The folder that a path or a ``file:`` URL names.

    Raises:
        InvalidInput: a relative path within a Ray job, or another URL.
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
    if is_bucket(given):
        raise InvalidInput("--home", given, "is a bucket, which this can not use", "give a folder")
    remedy = "give a folder, or a bucket as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
    raise InvalidInput("--home", given, f"is of no kind that is known here, {url.scheme}", remedy)


def scratch() -> Path:
    """Where this machine keeps its parts of homes in buckets: ``OEC_SCRATCH``, or a folder in ``/tmp`` of this user.

    Raises:
        InvalidInput: it can not be made, or is another user's.
    """
    path = Path(os.environ.get("OEC_SCRATCH") or Path(tempfile.gettempdir()) / f"oec-{os.getuid()}").absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.lstat().st_uid
    except OSError as error:
        problem = f"can not be made ({error.strerror})"
        raise InvalidInput("OEC_SCRATCH", str(path), problem, "name a folder of local disk") from error
    if owner != os.getuid():
        raise InvalidInput("OEC_SCRATCH", str(path), "is another user's", "name a folder of your own")
    return path


def check(home: Home) -> None:
    """See that every node of the cluster that this process has joined reads and writes the same home.

    Raises:
        InvalidInput: one does not; the message names each and what is wrong there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    word = secrets.token_hex(8)
    texts = home.texts(f".probe-{word}")
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    try:
        texts.write("driver", word)
        task = ray.remote(num_cpus=0, max_retries=0)(answer)
        asked = {
            node["NodeID"]: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(texts, word, node["NodeID"])
            for node in alive
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_S)
        wrong = {}
        for node in alive:
            problem = said(asked[node["NodeID"]]) or unseen(texts, node["NodeID"], word)
            if problem:
                wrong[node["NodeID"]] = f"{node['NodeManagerAddress']} ({problem})"
    finally:
        texts.clear()
    if wrong:
        nodes = f"node{'s' if len(wrong) > 1 else ''} {', '.join(sorted(wrong.values()))}"
        raise InvalidInput("--home", str(home), f"is not seen by {nodes}", REMEDY)


def answer(texts: Texts, word: str, node: str) -> str:
    """On a node: read what the driver wrote and write something of its own; what went wrong, if anything did."""
    try:
        texts.check()
        if problem := unseen(texts, "driver", word):
            return problem
        texts.write(node, word)
    except InvalidInput as error:
        return error.problem
    except OSError as error:
        return f"can not write: {error.strerror}"
    return ""


def unseen(texts: Texts, name: str, word: str) -> str:
    """Why the text of this name is not the word, after ``SHOWN_S``; network file systems take their time."""
    problem = ""

    def holds() -> bool:
        nonlocal problem
        try:
            found = texts.read(name)
            problem = "" if found == word else "No such file or directory" if found is None else "holds something else"
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

"""Opens the home that ``--home`` names: a path, a ``file:`` URL, or the URL of a bucket."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from search_spaces.errors import InvalidInput, expand, printable
from search_spaces.frozen import digest
from service.home import copies
from service.home.layout import Home
from trainers.storage.bucket import Bucket, is_bucket

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the driver of a job."""


def open_home(given: str | Path) -> Home:
    """Open a home, creating its folder if needed; from a bucket, with its studies and their ledgers as they are now.

    Raises:
        InvalidInput: the folder cannot be created or written, the bucket cannot be read, or see ``local_folder``.
    """
    if not is_bucket(str(given)):
        return open_folder(given)
    bucket = Bucket.open(str(given))
    home = Home(scratch() / f"{bucket.url.rpartition('/')[2]}-{digest(bucket.url)[:12]}", bucket)
    home.studies.mkdir(parents=True, exist_ok=True)
    copies.pull(home)
    return home


def open_folder(given: str | Path) -> Home:
    """As ``open_home``, for commands that do not work on a bucket."""
    home = Home(expand(str(local_folder(str(given))), "--home").resolve())
    if printable(home) != str(home):
        problem, remedy = "is not valid UTF-8, so MLflow and Ray cannot use it", "rename the folder, or choose another"
        raise InvalidInput("--home", str(home), problem, remedy)
    try:
        home.studies.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home.path):
            pass
    except OSError as error:
        problem = f"is not writable ({error.strerror})"
        raise InvalidInput("--home", str(given), problem, "choose a folder that is, or make it so") from error
    return home


def local_folder(given: str) -> Path:
    """The folder that a path or a ``file:`` URL names.

    Raises:
        InvalidInput: a relative path inside a Ray job, or another kind of URL.
    """
    url = urlsplit(given)
    if "://" not in given and url.scheme != "file":
        if IN_A_JOB in os.environ and not given.startswith(("/", "~")):
            problem = "is relative; in a Ray job that is a temporary folder of Ray's, gone with the cluster"
            raise InvalidInput("--home", given, problem, "set OEC_HOME to an absolute path that every node can access")
        return Path(given)
    if url.scheme == "file" and url.netloc in ("", "localhost") and url.path.startswith("/"):
        return Path(unquote(url.path))
    if url.scheme == "file":
        raise InvalidInput("--home", given, "is not a folder of this machine", "write file:///absolute/path")
    if is_bucket(given):
        raise InvalidInput("--home", given, "is a bucket, which this command cannot use", "give a folder")
    remedy = "give a folder, or a bucket as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
    raise InvalidInput("--home", given, f"has the unsupported scheme {url.scheme}", remedy)


def scratch() -> Path:
    """Where this machine keeps its copies of homes in buckets: ``OEC_SCRATCH``, or a folder of this user in ``/tmp``.

    Raises:
        InvalidInput: it cannot be created, or belongs to another user.
    """
    path = Path(os.environ.get("OEC_SCRATCH") or Path(tempfile.gettempdir()) / f"oec-{os.getuid()}").absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.lstat().st_uid
    except OSError as error:
        problem = f"cannot be created ({error.strerror})"
        raise InvalidInput("OEC_SCRATCH", str(path), problem, "name a folder of local disk") from error
    if owner != os.getuid():
        raise InvalidInput("OEC_SCRATCH", str(path), "belongs to another user", "name a folder of your own")
    return path

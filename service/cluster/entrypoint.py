"""The shell command of a job: ``oec run`` with the study itself in it, so that no file has to be on the cluster."""

from __future__ import annotations

import shlex
from pathlib import Path

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.home.location import local_folder
from trainers.storage.bucket import is_bucket, validate_url

MAX_COMMAND_BYTES = 100_000
"""The operating system's limit is 131,071 bytes per argument."""
EXIT_COMMAND_NOT_FOUND = 127
"""Exit code of a shell that does not find ``oec``."""


def entrypoint_command(study: Study, *, retry_crashed: bool) -> str:
    """The shell command that contains the study and runs it.

    Raises:
        InvalidInput: the study is too long for a command.
    """
    command = f"printf %s {shlex.quote(study.to_yaml())} | oec run -" + (" --retry-crashed" if retry_crashed else "")
    if len(command.encode()) > MAX_COMMAND_BYTES:
        remedy = "put the file on the cluster's storage, and run `ray job submit -- oec run FILE`"
        raise InvalidInput("STUDY", study.name, f"is longer than {MAX_COMMAND_BYTES:,} bytes", remedy)
    return command


def portable_home(study: Study, home: str | None) -> str | None:
    """Check that the paths of the study and the home mean the same on the cluster as here.

    Returns:
        The home as a plain path or as the URL of a bucket; None if none was given.

    Raises:
        InvalidInput: a path is relative, so it would lead elsewhere on the cluster; or ``home`` is not valid.
    """
    paths = {"data.path": study.data.path, "data.validation": study.data.validation}
    if home and is_bucket(home):
        normalized: str | None = validate_url(home)
    else:
        normalized = paths["--home"] = str(local_folder(home)) if home else None
    for field, path in paths.items():
        if path and not Path(path).is_absolute():
            remedy = "give an absolute path on storage that every node of the cluster sees"
            raise InvalidInput(field, path, "is a relative path, which leads elsewhere on the cluster", remedy)
    return normalized

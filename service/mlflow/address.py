"""The address of the MLflow store, and whether it can be used."""

from __future__ import annotations

import logging
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from search_spaces.errors import InvalidInput

if TYPE_CHECKING:
    from service.home.layout import Home

logger = logging.getLogger(__name__)

UI_PORT = 5000
"""Default port of ``oec ui``."""
CHECK_TIMEOUT_S = 5.0
DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_uri(home: Home) -> str:
    """``MLFLOW_TRACKING_URI``, or the home's own SQLite store.

    The path of a SQLite store is absolute: while Ray starts, this process works in another folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        return sqlite_uri(home.path / "mlflow.db")
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////") and not in_memory(uri):
        return sqlite_uri(Path.cwd() / str(sqlite_file(uri)))
    return uri


def sqlite_uri(path: Path) -> str:
    """The address of a SQLite store in a file whose path may have any characters.

    Raises:
        InvalidInput: the installed SQLAlchemy, before 2.1, has no way to write it.
    """
    plain = str(path)
    # MLflow creates the parents of what follows sqlite:///, before SQLAlchemy unquotes it.
    for uri in (f"sqlite:///{plain}", f"sqlite+pysqlite:///{quote(plain)}"):
        if sqlite_file(uri) == path:
            return uri
    remedy = "rename the folder, set MLFLOW_TRACKING_URI, or install SQLAlchemy 2.1 or later"
    raise InvalidInput("MLFLOW_TRACKING_URI", plain, "cannot be written as the address of a database", remedy)


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store, and for a database in memory."""
    if not uri.startswith(("sqlite:", "sqlite+")) or in_memory(uri):
        return None
    if re.fullmatch(r"sqlite:///[\w/.-]+", uri, re.ASCII):
        return Path(uri.removeprefix("sqlite:///"))  # there is nothing to unquote, and the import takes a while
    from sqlalchemy import make_url

    return Path(str(make_url(uri).database))


def in_memory(uri: str) -> bool:
    """Whether a SQLite database ends with its connection."""
    database, _, query = uri.partition("://")[2].partition("?")
    return re.fullmatch(r"/?|/(file:)?:memory:", database) is not None or "mode=memory" in query


def redact(uri: str) -> str:
    """An address without user and password, for messages."""
    return re.sub(r"//[^/@]*@", "//", uri)


def ui_address(uri: str) -> str:
    """Where a browser finds the runs: the server, or the default address of ``oec ui``."""
    return redact(uri).rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{UI_PORT}"


def check_store(uri: str) -> None:
    """Refuse a store that cannot be reached or denies access, before anything starts.

    A server that is slow or failing is not refused: it may have recovered by the time there is something to deliver.

    Raises:
        InvalidInput: an unknown kind of address, no server there, or one that answers 401 or 403.
    """

    def bad(problem: str, remedy: str) -> InvalidInput:
        return InvalidInput("MLFLOW_TRACKING_URI", redact(uri), problem, remedy)

    if uri == "databricks" or uri.startswith("databricks://"):  # a profile, or scope:prefix, which is no port
        return
    try:
        parts = urlsplit(uri)
        scheme = parts.scheme.partition("+")[0]
        host, port = parts.hostname, parts.port or DEFAULT_PORTS.get(scheme)
    except ValueError as error:
        raise bad(f"is not an address ({error})", "write it as scheme://host:port") from error
    if scheme not in (*DEFAULT_PORTS, "sqlite"):
        remedy = "use an http(s) server, or a database such as sqlite:////path/to/mlflow.db"
        raise bad("is not an MLflow store", remedy)
    if scheme == "sqlite":
        file = sqlite_file(uri)
        if file is None:
            raise bad("is a database in memory, which ends with this process", "use sqlite:////path/to/mlflow.db")
        if str(file).startswith("file:"):
            raise bad("is a URI of SQLite, which MLflow takes for a file name", "use sqlite:////path/to/mlflow.db")
        if not file.parent.is_dir():
            raise bad("is in a folder that does not exist", "create the folder")
    if host and port:
        try:
            socket.create_connection((host, port), timeout=CHECK_TIMEOUT_S).close()
        except OSError as error:
            raise bad(f"is not reachable ({error})", "start the server, or unset the variable") from error
    if scheme in ("http", "https") and (status := _status_of(uri)) in (401, 403):
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        raise bad(f"denies access (HTTP {status})", remedy)


def _status_of(uri: str) -> int | None:
    """The status of a harmless request, made with the credentials and settings that MLflow's client will use."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        response = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=CHECK_TIMEOUT_S,
            raise_on_status=False,
        )
    except MlflowException as error:  # too slow, or cut off
        logger.warning("MLflow: %s", redact(str(error)))
        return None
    return int(response.status_code)

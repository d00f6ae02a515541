"""The address of the MLflow store, and whether it can be used."""

from __future__ import annotations

import logging
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from search_spaces.errors import InvalidInput

if TYPE_CHECKING:
    from service.home.layout import Home

logger = logging.getLogger(__name__)

UI_PORT = 5000
"""Default port of ``oec ui``."""
CHECK_TIMEOUT_S = 5.0
DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_uri(home: Home) -> str:
    """``MLFLOW_TRACKING_URI``, or the home's own SQLite store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.path / 'mlflow.db'}"


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

    try:
        parts = urlsplit(uri)
        scheme = parts.scheme.partition("+")[0]
        host, port = parts.hostname, parts.port or DEFAULT_PORTS.get(scheme)
    except ValueError as error:
        raise bad(f"is not an address ({error})", "write it as scheme://host:port") from error
    if scheme not in (*DEFAULT_PORTS, "sqlite", "databricks"):
        remedy = "use an http(s) server, or a database such as sqlite:////path/to/mlflow.db"
        raise bad("is not an MLflow store", remedy)
    if scheme == "sqlite" and not Path(uri.partition(":///")[2]).parent.is_dir():
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

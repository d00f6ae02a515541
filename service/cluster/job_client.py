"""Ray's client for the jobs of a cluster, with errors that tell the user what to do."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from search_spaces.errors import InvalidInput
from service.cluster.connection import configure_ray

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CONNECT_TIMEOUT_S = 5.0
ADDRESS_REMEDY = "give the address of the cluster's dashboard, http://HOST:8265"


def dashboard_url(address: str) -> str:
    """The address of a dashboard with its scheme, and without a trailing slash.

    Raises:
        InvalidInput: the address has another scheme.
    """
    url = address if "://" in address else f"http://{address}"
    if not url.startswith(("http://", "https://")):
        raise InvalidInput("--cluster", address, "is not the address of a Ray dashboard", "give http://HOST:8265")
    return url.rstrip("/")


def connect_client(url: str) -> JobSubmissionClient:
    """Connect Ray's client to the dashboard at ``url``, and check that it answers.

    Raises:
        InvalidInput: nothing answers within ``CONNECT_TIMEOUT_S``, the server is not Ray, or it rejects the token.
    """
    configure_ray()
    import requests

    try:
        requests.get(f"{url}/api/version", timeout=CONNECT_TIMEOUT_S)  # Ray's client itself has no timeout
    except requests.exceptions.RequestException as error:
        raise InvalidInput("--cluster", url, f"does not answer ({type(error).__name__})", ADDRESS_REMEDY) from error
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # otherwise RAY_ADDRESS would override the argument
    try:
        client = JobSubmissionClient(url)
        client.list_jobs()
    except AuthenticationError as error:
        remedy = "set RAY_AUTH_TOKEN to the token that the cluster was started with, or put it into ~/.ray/auth_token"
        raise InvalidInput("--cluster", url, "rejects the token", remedy) from error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise InvalidInput(
            "--cluster", url, f"is not a Ray cluster ({type(error).__name__})", ADDRESS_REMEDY
        ) from error
    return client

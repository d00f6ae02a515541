"""The server's process: its socket, and how it ends."""

from __future__ import annotations

import ipaddress
from functools import partial

import uvicorn
from rich.console import Console

from search_spaces.errors import InvalidInput
from service.cluster.ray_start import check_folder, temporary_folder
from service.home.layout import Home
from service.http.app import create
from service.http.settings import Settings
from service.http.tokens import TokenFile

LEAVE_S = 3
"""How long open event streams keep a server that is asked to end; their clients come back where they stood."""


def serve(home: Home, host: str, port: int, settings: Settings, console: Console) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InvalidInput: the address cannot be listened on, a file of the service is damaged, or Ray has nowhere to keep
            its files.
    """
    if settings.cluster is None:
        check_folder(*temporary_folder())
    if not TokenFile(home).all():
        console.print("nobody has a token yet: `oec token add NAME --role run` makes one")
    if not loopback(host):
        console.print(f"listening on {host}: tokens travel in clear, so put TLS before it (docs/service.md)")
    config = uvicorn.Config(
        create(home, settings, report=partial(console.print, soft_wrap=True)),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,  # paths and addresses of people; the audit has what changed
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=LEAVE_S,
    )
    try:
        socket = config.bind_socket()
    except SystemExit as error:  # uvicorn's, after it has logged the reason
        remedy = "choose another --port, or end what listens there"
        raise InvalidInput("--port", port, f"on {host} can not be listened on", remedy) from error
    console.print(f"http://{host}:{socket.getsockname()[1]} serves {home.path}", soft_wrap=True)
    uvicorn.Server(config).run(sockets=[socket])


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

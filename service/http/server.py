"""The server process: its socket, its startup messages, and its shutdown."""

from __future__ import annotations

import ipaddress
from functools import partial

import uvicorn
from rich.console import Console

from search_spaces.errors import InvalidInput
from service.cluster.ray_start import check_folder, temporary_folder
from service.home.layout import Home
from service.http.app import create_app
from service.http.models import Settings
from service.http.tokens import TokenFile


def serve(home: Home, host: str, port: int, settings: Settings, console: Console) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InvalidInput: the port cannot be opened, a file of the service is damaged, or Ray cannot write its files.
    """
    if settings.cluster is None:
        check_folder(*temporary_folder())
    if not TokenFile(home).all():
        console.print("there are no tokens yet: create one with `oec token add NAME --role run`")
    if not is_loopback(host):
        console.print(f"listening on {host}: tokens are sent unencrypted, so use a proxy with TLS (docs/service.md)")
    config = uvicorn.Config(
        create_app(home, settings, log=partial(console.print, soft_wrap=True)),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,  # it would record users' addresses; the audit log has the changes
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,  # clients of open event streams reconnect and miss no event
    )
    try:
        socket = config.bind_socket()
    except SystemExit as error:  # raised by uvicorn, which has logged the reason
        remedy = "choose another --port, or stop the process that listens there"
        raise InvalidInput("--port", port, f"cannot be opened on {host}", remedy) from error
    console.print(f"http://{host}:{socket.getsockname()[1]} serves {home.path}", soft_wrap=True)
    uvicorn.Server(config).run(sockets=[socket])


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

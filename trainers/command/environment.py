"""The environment of a command: the worker's own, with the devices and cores of the cell."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from trainers.protocol import Context

OURS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "ACCELERATE_TORCH_DEVICE"}
"""Variables of the worker's own process group. A script would take them for its own and wait for ranks that do not
exist."""
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
"""Names of variables whose values must not be quoted."""
URL_PASSWORD = re.compile(r"://[^/@\s]*:([^/@\s]+)@")
MIN_SECRET = 6
"""Shorter values are words that occur anywhere."""


def environment(
    base: Mapping[str, str], context: Context, *, processes: int, cell_id: str, master: tuple[str, int]
) -> dict[str, str]:
    """The variables that a command starts with. None of them is written anywhere.

    Args:
        base: the environment of the worker.
        processes: training processes on this node, which share its cores.
        master: address and port of the node of rank 0.
    """
    own = {name: value for name, value in base.items() if name not in OURS}
    address, port = master
    return own | {
        "CUDA_VISIBLE_DEVICES": ",".join(context.device_ids),
        "OMP_NUM_THREADS": str(max(1, context.cores // processes)),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "OEC_CELL": cell_id,
        "PYTHONUNBUFFERED": base.get("PYTHONUNBUFFERED", "1"),  # otherwise a pipe gets its lines late
    }


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def hide_secrets(text: str, base: Mapping[str, str]) -> str:
    """``text`` without the values of variables whose names say that they are secret, and without passwords in URLs: a
    command may print them."""
    secrets = {value for name, value in base.items() if SECRET.search(name)}
    secrets |= {password for value in base.values() for password in URL_PASSWORD.findall(value)}
    for value in sorted((secret for secret in secrets if len(secret) >= MIN_SECRET), key=len, reverse=True):
        text = text.replace(value, "***")
    return text

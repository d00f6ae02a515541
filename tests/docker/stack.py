"""The services of docker/compose.yaml as processes of this machine: the command, environment and health check that the
file has for each, with Postgres from this machine's package, on loopback and on free ports."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.docker import compose

TOKEN, PASSWORD = "a-token-of-this-test-alone-0123456789", "a password of this test"
START_S, STOP_S = 240.0, 30.0


def free_port() -> int:
    """Below those that the kernel gives to outgoing connections: one of these may be taken before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener:
            if listener.connect_ex(("127.0.0.1", port)):  # nobody listens there
                return port


def postgres_program(name: str) -> str:
    """Of the PATH, or of where Debian keeps them."""
    found = shutil.which(name) or max(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), default="")
    if not found:
        pytest.skip(f"PostgreSQL's {name} is not here: install the package postgresql")
    return found


class Stack:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = compose.load(RAY_AUTH_TOKEN=TOKEN, POSTGRES_PASSWORD=PASSWORD, OEC_WORKER_CPUS="1")["services"]
        self.ports = {port: free_port() for port in (5432, 5000, 6379, 8265)}
        self.volumes = {"/oec-home": folder / "home", "/artifacts": folder / "artifacts"}

    def here(self, text: str) -> str:
        """A word of the file with the hosts, ports and volumes of this machine in place of the containers'."""
        text = re.sub(rf"\b({'|'.join(self.services)})(?=:\d)|0\.0\.0\.0", "127.0.0.1", text)
        for port, free in self.ports.items():
            text = re.sub(rf"(^|(?<=:)){port}\b", str(free), text)
        for volume, place in self.volumes.items():
            text = re.sub(rf"^{volume}\b", str(place), text)
        return text

    def command(self, service: str) -> list[str]:
        return [self.here(word) for word in self.services[service]["command"]]

    def environment(self, service: str) -> dict[str, str]:
        """The service's variables, those of the image, and the least that a process needs."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "PYTHONPATH") if name in os.environ}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        image = {name: value for name, value in compose.image_variables().items() if name.startswith(("RAY", "PYTHON"))}
        own = {name: self.here(value) for name, value in self.services[service]["environment"].items()}
        return {**kept, **image, **own, "PATH": path, "OMP_NUM_THREADS": "1"}

    @contextmanager
    def running(self, name: str, command: list[str], environment: dict[str, str], **how: Any) -> Iterator[None]:
        """A process until the block ends; its children that outlive it are ended, too."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = psutil.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder, **how)
        try:
            yield
        finally:
            family = [process, *process.children(recursive=True)] if process.is_running() else []
            if family:
                process.terminate()
            for left in psutil.wait_procs(family, STOP_S)[1]:
                left.kill()

    @contextmanager
    def postgres(self) -> Iterator[None]:
        """The service ``postgres``: what its image does with its variables, by hand. Postgres refuses to be root."""
        own = self.services["postgres"]["environment"]
        user = "postgres" if os.geteuid() == 0 else None
        data, secret = self.folder / "postgres", self.folder / "password"
        secret.write_text(own["POSTGRES_PASSWORD"])
        data.mkdir()
        if user:
            for path in (self.folder, data, secret):
                shutil.chown(path, user)
        cluster = ["--pgdata", data, "--username", own["POSTGRES_USER"], "--pwfile", secret, "--auth", "scram-sha-256"]
        subprocess.run([postgres_program("initdb"), *cluster], user=user, check=True, capture_output=True)
        where = ["-D", data, "-p", self.here("5432"), "-h", "127.0.0.1", "-k", self.folder]
        with self.running("postgres", [postgres_program("postgres"), *map(str, where)], dict(os.environ), user=user):
            self.healthy("postgres")
            database = ["--host", "127.0.0.1", "--port", self.here("5432"), "--username", own["POSTGRES_USER"]]
            createdb = [postgres_program("createdb"), *database, own["POSTGRES_DB"]]
            subprocess.run(createdb, env={**os.environ, "PGPASSWORD": PASSWORD}, check=True)
            yield

    @contextmanager
    def service(self, service: str) -> Iterator[None]:
        """A service that is healthy when the block begins."""
        with self.running(service, self.command(service), self.environment(service)):
            self.healthy(service)
            yield

    @contextmanager
    def ray_node(self, service: str, name: str) -> Iterator[None]:
        """A Ray service; several nodes on one machine need agents on ports of their own."""
        agent = str(free_port())
        command = self.command(service)
        more = ["--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", agent]
        if "--head" in command:
            more += ["--temp-dir", str(self.folder / "ray"), "--dashboard-port", self.here("8265")]
        with self.running(name, [*command[:-1], *more, command[-1]], self.environment(service)):
            self.healthy(service, agent=agent)
            yield

    def healthy(self, service: str, agent: str = "") -> None:
        """Wait until the service's own health check passes."""
        check = [self.here(word) for word in self.services[service]["healthcheck"]["test"][1:]]
        check = [word.replace(":52365", f":{agent}") for word in check]
        if service == "postgres":
            check += ["--port", self.here("5432")]
        deadline = time.monotonic() + START_S
        while (last := subprocess.run(check, capture_output=True, text=True, check=False)).returncode:
            if time.monotonic() > deadline:
                pytest.fail(f"{service} is not healthy: {check}: {last.stdout}{last.stderr}\n{self.logs()}")
            time.sleep(0.5)

    def logs(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in self.folder.glob("*.log"))

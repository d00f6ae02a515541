"""Runs the services of compose.yaml without containers.

Every service is a process on this machine, on loopback and a free port, with the command, environment, secrets,
configuration and health check from compose.yaml. ``python docker/local_stack.py`` starts the services, runs the demo
through all of them, and prints their addresses. It needs this package with its extra ``dev``, and PostgreSQL's programs
(Debian's package ``postgresql``).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import compose_file
import psutil

from service.cluster.connection import free_port

START_S, STOP_S = 240.0, 30.0


class Unhealthy(Exception):
    """A service did not become healthy; the message contains the ends of all logs."""


def postgres_program(name: str) -> str:
    """Returns the path of a PostgreSQL program, from PATH or from the folder where Debian installs it.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = shutil.which(name) or max(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), default="")
    if not found:
        raise FileNotFoundError(f"PostgreSQL's {name} is not installed; install the package postgresql")
    return found


class Stack:
    """Addresses, secrets and processes of the services. Everything they write is in one folder."""

    def __init__(self, folder: Path, cores: int = 1) -> None:
        """
        Args:
            cores: number of cores per Ray worker.
        """
        self.folder = folder
        self.file = compose_file.load(OEC_WORKER_CPUS=str(cores))
        self.services: dict[str, Any] = self.file["services"]
        self.ports = {port: free_port() for port in (5432, 5000, 6379, 8265, 8080)}
        self.volumes = {"/oec-home": folder / "home", "/artifacts": folder / "artifacts"}
        self.secrets = self._made_secrets()
        self.places = {**self.volumes, "/run/secrets": folder / "secrets"}
        self.places |= self._configs()

    def here(self, text: str) -> str:
        """Replaces the containers' hosts, ports and paths in ``text`` with those of this machine."""
        text = re.sub(rf"\b({'|'.join(self.services)})(?=:\d)|0\.0\.0\.0", "127.0.0.1", text)
        for port, free in self.ports.items():
            text = re.sub(rf"(^|(?<=:)){port}\b", str(free), text)
        for inside, place in self.places.items():
            text = re.sub(rf"^{re.escape(inside)}\b", str(place), text)
        return text

    def command(self, service: str) -> list[str]:
        """Returns a service's command, run by the image's entry point."""
        return [str(compose_file.FOLDER / "entrypoint.sh"), *map(self.here, self.services[service]["command"])]

    def environment(self, service: str) -> dict[str, str]:
        """Returns the variables of the service and of the image, and the few that every process needs."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "PYTHONPATH") if name in os.environ}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        image = {
            name: value for name, value in compose_file.image_variables().items() if name.startswith(("RAY", "PYTHON"))
        }
        own = {name: self.here(value) for name, value in self.services[service]["environment"].items()}
        return {**kept, **image, **own, "PATH": path, "OMP_NUM_THREADS": "1"}

    def address(self, service: str) -> str:
        """Returns the URL of a service that browsers or clients call."""
        port = {"mlflow": 5000, "ray-head": 8265, "serve": 8080}[service]
        return f"http://127.0.0.1:{self.ports[port]}"

    @contextmanager
    def all(self, workers: int) -> Iterator[None]:
        """Runs every service, with ``workers`` Ray workers; all are healthy when the block starts."""
        with ExitStack() as running:
            running.enter_context(self.postgres())
            running.enter_context(self.service("mlflow"))
            running.enter_context(self.ray_node("ray-head", "ray-head"))
            for number in range(1, workers + 1):
                running.enter_context(self.ray_node("ray-worker", f"ray-worker-{number}"))
            running.enter_context(self.service("serve"))
            yield

    def demo(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Runs the command of the service ``demo``, with ``arguments`` in place of everything from ``--`` on."""
        command = self.command("demo")
        submit = command[: command.index("--")]
        return subprocess.run([*submit, *arguments], env=self.environment("demo"), text=True, check=False, **how)

    def token(self, name: str) -> str:
        """Creates a token with role ``run`` for the service ``serve``."""
        command = [*self.command("serve")[:2], "token", "add", name, "--role", "run"]
        made = subprocess.run(command, env=self.environment("serve"), capture_output=True, text=True, check=True)
        return made.stdout.strip()

    @contextmanager
    def running(self, name: str, command: list[str], environment: dict[str, str], **how: Any) -> Iterator[None]:
        """Runs a process until the block ends, then terminates it and kills any child that survives it."""
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
        """Runs the service ``postgres``, with the setup that its image does. Postgres refuses to run as root."""
        own = {name: self.here(value) for name, value in self.services["postgres"]["environment"].items()}
        user = "postgres" if os.geteuid() == 0 else None
        data, secret = self.folder / "postgres", self.folder / "password"
        shutil.copy(own["POSTGRES_PASSWORD_FILE"], secret)
        if not data.exists():
            data.mkdir()
        if user:
            for path in (self.folder, data, secret):
                shutil.chown(path, user)
        cluster = ["--pgdata", data, "--username", own["POSTGRES_USER"], "--pwfile", secret, "--auth", "scram-sha-256"]
        fresh = not any(data.iterdir())
        if fresh:
            subprocess.run([postgres_program("initdb"), *cluster], user=user, check=True, capture_output=True)
        secret.unlink()
        where = ["-D", data, "-p", self.here("5432"), "-h", "127.0.0.1", "-k", self.folder]
        with self.running("postgres", [postgres_program("postgres"), *map(str, where)], dict(os.environ), user=user):
            self.healthy("postgres")
            database = ["--host", "127.0.0.1", "--port", self.here("5432"), "--username", own["POSTGRES_USER"]]
            createdb = [postgres_program("createdb"), *database, own["POSTGRES_DB"]]
            if fresh:
                password = {"PGPASSWORD": self.secrets["postgres-password"]}
                subprocess.run(createdb, env={**os.environ, **password}, check=True)
            yield

    @contextmanager
    def service(self, service: str) -> Iterator[None]:
        """Runs a service; it is healthy when the block starts."""
        with self.running(service, self.command(service), self.environment(service)):
            self.healthy(service)
            yield

    @contextmanager
    def ray_node(self, service: str, name: str) -> Iterator[None]:
        """Runs a Ray node. Several nodes on one machine need different ports for their agents."""
        agent = str(free_port())
        command = self.command(service)
        more = ["--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", agent]
        if "--head" in command:
            more += ["--temp-dir", str(self.folder / "ray"), "--dashboard-port", self.here("8265")]
        with self.running(name, [*command[:-1], *more, command[-1]], self.environment(service)):
            self.healthy(service, agent=agent)
            yield

    def healthy(self, service: str, agent: str = "") -> None:
        """Waits until the service's own health check passes.

        Raises:
            Unhealthy: it has not passed after ``START_S``.
        """
        check = [self.here(word) for word in self.services[service]["healthcheck"]["test"][1:]]
        check = [word.replace(":52365", f":{agent}") for word in check]
        if service == "postgres":
            check += ["--port", self.here("5432")]
        deadline = time.monotonic() + START_S
        while (last := subprocess.run(check, capture_output=True, text=True, check=False)).returncode:
            if time.monotonic() > deadline:
                raise Unhealthy(f"{service}: {check}: {last.stdout}{last.stderr}\n{self.logs()}")
            time.sleep(0.5)

    def logs(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in self.folder.glob("*.log"))

    def _made_secrets(self) -> dict[str, str]:
        """Creates secrets with a copy of secrets.sh, which writes to its own folder; returns them by name."""
        script = shutil.copy(compose_file.FOLDER / "secrets.sh", self.folder)
        subprocess.run([script], check=True)
        files = {name: self.folder / secret["file"] for name, secret in self.file["secrets"].items()}
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}

    def _configs(self) -> dict[str, Path]:
        """Writes the configurations for this machine; returns their paths, by the path in the container."""
        places = {}
        for service in self.services.values():
            for config in service.get("configs", []):
                path = self.folder / Path(config["target"]).name
                path.write_text(self.here(self.file["configs"][config["source"]]["content"]), encoding="utf-8")
                places[config["target"]] = path
        return places


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "study", nargs="?", default="demo", help="shipped study or absolute path of a study file (default: demo)"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder for all files; its path must be short (default: a temporary folder)"
    )
    parser.add_argument("--workers", type=int, default=2, help="number of Ray workers (default: 2)")
    parser.add_argument("--cores", type=int, default=1, help="cores per Ray worker (default: 1)")
    parser.add_argument("--keep", action="store_true", help="keep the services running until Ctrl-C")
    options = parser.parse_args()
    # SIGTERM must also stop the services.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as resources:
        folder = options.folder or Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="oec-")))
        folder.mkdir(parents=True, exist_ok=True)
        stack = Stack(folder.resolve(), options.cores)
        print(f"starting the services of {compose_file.FOLDER / 'compose.yaml'}; logs in {folder}", flush=True)
        resources.enter_context(stack.all(options.workers))
        print(f"MLflow {stack.address('mlflow')} user admin, password in {folder / 'secrets' / 'mlflow-password'}")
        print(f"Ray    {stack.address('ray-head')} token in {folder / 'secrets' / 'ray-token'}", flush=True)
        print(f"oec    {stack.address('serve')} token {stack.token('me')}", flush=True)
        code = stack.demo("--", "oec", "run", options.study).returncode
        print(f"report {stack.volumes['/oec-home'] / 'studies' / Path(options.study).stem / 'report'}", flush=True)
        if options.keep:
            print("the services run until Ctrl-C", flush=True)
            signal.pause()
        return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (FileNotFoundError, Unhealthy) as error:
        sys.exit(f"local_stack: {error}")

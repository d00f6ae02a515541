"""The HTTP service under load: 50 clients watch and 10 submit for a minute; with ``--kill``, the service is killed.

Every client records the responses that it got. At the end they are compared with the home: every accepted submission
must have its job and its ledger, and every watching client must have seen each event of a ledger exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml

from search_spaces.record import TERMINAL
from search_spaces.study import Study
from service.cluster.connection import free_port
from service.cluster.jobs import Jobs
from service.cluster.local_head import stop_head
from service.home.layout import Home
from service.home.location import open_home
from service.home.studies import read_ledger, registered, with_ledger
from service.http.tokens import TokenFile

LOST = (httpx2.TransportError,)
"""The connection broke because the service died; the client retries."""
READY_S, ENDS_S = 240.0, 300.0


@dataclass
class Told:
    """What the clients observed."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds until a response, by kind of request."""
    answers: Counter[str] = field(default_factory=Counter)
    """Number of responses, by kind of request and status."""
    accepted: list[str] = field(default_factory=list)
    """Names of submissions that were answered with 201."""
    unsure: list[str] = field(default_factory=list)
    """Names of submissions whose response was lost when the service died."""
    watched: list[tuple[str, list[int], bool]] = field(default_factory=list)
    """Study, ids of the ledger's events in the order received, and whether the end of the study was received."""


class Server:
    """``oec serve`` in its own process, which can be killed and restarted on the same port."""

    def __init__(self, home: Home, port: int, log: Path, *, active: int = 4, **environment: str) -> None:
        self.port, self._log = port, log
        self._command = [str(Path(sys.executable).with_name("oec")), "serve", "--home", str(home.path)]
        self._command += ["--port", str(port), "--max-active", str(active)]
        self._environment = {**os.environ, **environment}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kills the process and starts a new one."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self._start()

    def end(self) -> int:
        """Sends SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=30)


def study(name: str) -> dict[str, Any]:
    """Returns a study with two cells of a few seconds each, which no other study has: each study has its own seed."""
    content: dict[str, Any] = yaml.safe_load(Study.load("smoke").to_yaml())
    content |= {"name": name, "methods": ["baseline"], "lrs": [1e-3, 1e-1], "seeds": [random.randrange(10**9)]}
    return content | {"resources": {"workers": 1, "concurrency": 1}}  # two studies share two cores


class Load:
    """The clients, until ``over`` is set."""

    def __init__(self, server: Server, readers: list[str], runners: list[str]) -> None:
        self._server, self._at = server, f"http://127.0.0.1:{server.port}/api/v1"
        self._readers, self._runners = readers, runners
        self.told, self.over = Told(), asyncio.Event()

    async def ready(self) -> None:
        """Waits until the service and its cluster respond."""
        deadline = time.monotonic() + READY_S
        async with self._client(self._readers[0]) as client:
            while True:
                try:
                    if (await client.get(f"{self._at}/studies")).json()["cluster"]:
                        return
                except LOST:
                    pass
                if self._server.process.poll() is not None or time.monotonic() > deadline:
                    raise TimeoutError(f"no service and cluster within {READY_S:g} s")
                await asyncio.sleep(0.2)

    async def submit(self, number: int) -> None:
        """Plans, submits, resumes and reads, one request after the other."""
        async with self._client(self._runners[number]) as client:
            turn = 0
            while not self.over.is_set():
                turn += 1
                what = random.choices(("plan", "submit", "resume", "list", "curves"), (4, 3, 1, 1, 1))[0]
                name = f"load-{number}-{turn}"
                known = random.choice(self.told.accepted or [""])
                if what == "plan":
                    await self._post(client, "plan", "/plan", study(name))
                elif what == "submit":
                    await self._submit(client, study(name))
                elif what == "resume" and known:
                    await self._post(client, "resume", f"/studies/{known}/resume", {})
                elif what == "list" or not known:
                    await self._ask(client, "list", "GET", "/studies")
                else:
                    await self._ask(client, "curves", "GET", f"/studies/{known}/curves")
                await asyncio.sleep(random.uniform(0.1, 0.5))

    async def watch(self, number: int) -> None:
        """Watches one study after the other, each to its end, and resumes each stream where it was lost."""
        async with self._client(self._readers[number]) as client:
            while not self.over.is_set():
                if not self.told.accepted:
                    await asyncio.sleep(0.1)
                    continue
                name = self.told.accepted[-1 - random.randrange(min(3, len(self.told.accepted)))]
                seen: list[int] = []
                try:
                    await asyncio.wait_for(self._follow(client, name, seen), ENDS_S)
                    ended = True
                except TimeoutError:
                    ended = False
                self.told.watched.append((name, seen, ended))

    async def _follow(self, client: httpx2.AsyncClient, name: str, seen: list[int]) -> None:
        """Adds the ids of a ledger's events to ``seen``, until the end of the study is received."""
        ended = False
        while not ended:
            try:
                async for id, event in self._events(client, name, seen[-1] if seen else 0):
                    if event == "ledger":
                        seen.append(id)
                    ended = ended or event == "end"
            except LOST:
                self.told.answers["events lost"] += 1
                await asyncio.sleep(0.2)

    async def _events(self, client: httpx2.AsyncClient, name: str, after: int) -> AsyncIterator[tuple[int, str]]:
        began = time.monotonic()
        headers = {"Last-Event-ID": str(after)}
        async with client.stream("GET", f"{self._at}/studies/{name}/events", headers=headers) as stream:
            self.told.answers[f"events {stream.status_code}"] += 1
            self.told.seconds["events"].append(time.monotonic() - began)
            id, event = after, ""
            async for line in stream.aiter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("id: "):
                    id = int(line.removeprefix("id: "))
                elif not line and event:
                    yield id, event
                    event = ""

    async def _submit(self, client: httpx2.AsyncClient, content: dict[str, Any]) -> None:
        status = await self._post(client, "submit", "/studies", content)
        if status == 201:
            self.told.accepted.append(content["name"])
        elif status is None:
            self.told.unsure.append(content["name"])

    async def _post(self, client: httpx2.AsyncClient, what: str, path: str, content: dict[str, Any]) -> int | None:
        return await self._ask(client, what, "POST", path, json=content)

    async def _ask(self, client: httpx2.AsyncClient, what: str, method: str, path: str, **content: Any) -> int | None:
        """Returns the status, or None if the connection broke."""
        began = time.monotonic()
        try:
            answer = await client.request(method, self._at + path, **content)
        except LOST:
            self.told.answers[f"{what} lost"] += 1
            await asyncio.sleep(0.2)
            return None
        self.told.answers[f"{what} {answer.status_code}"] += 1
        self.told.seconds[what].append(time.monotonic() - began)
        return answer.status_code

    def _client(self, secret: str) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(headers={"Authorization": f"Bearer {secret}"}, timeout=httpx2.Timeout(60.0))


async def run(server: Server, readers: list[str], runners: list[str], *, seconds: float, kills: int) -> Told:
    """Runs the load, kills the service ``kills`` times in the meantime, and waits until every client saw the end."""
    load = Load(server, readers, runners)
    await load.ready()
    clients = [asyncio.create_task(load.submit(i)) for i in range(len(runners))]
    clients += [asyncio.create_task(load.watch(i)) for i in range(len(readers))]
    for _ in range(kills):
        await asyncio.sleep(seconds / (kills + 1))
        await asyncio.to_thread(server.kill)
    await asyncio.sleep(seconds / (kills + 1))
    load.over.set()
    await asyncio.gather(*clients)
    return load.told


def wrong(told: Told, home: Home) -> list[str]:
    """Returns a sentence for each thing that was lost."""
    note = json.loads((home.service / "ray.json").read_text())
    jobs = Jobs(note["dashboard"])
    deadline = time.monotonic() + ENDS_S
    while any(job.is_active for job in jobs.all()) and time.monotonic() < deadline:
        time.sleep(0.5)
    audit = [json.loads(line) for line in (home.service / "audit.jsonl").read_text().splitlines()]
    asked = {line["study"].partition(" ")[0] for line in audit if line["outcome"] == "asked"}
    found = []
    ledgers = {name: read_ledger(home, name) for name in with_ledger(home)}
    submitted = {job.study for job in jobs.all()}
    for name in told.accepted:
        states = [entry.state for entry in ledgers[name].entries.values()] if name in ledgers else []
        if name not in submitted:
            found.append(f"{name} was accepted and has no job")
        if len(states) != 2 or not set(states) <= TERMINAL - {"crashed"}:
            found.append(f"{name} was accepted and its ledger says {states or 'nothing'}")
    for name, seen, ended in told.watched:
        last = ledgers[name].seq if name in ledgers else 0
        if not ended or seen != list(range(1, last + 1)):
            found.append(f"a watcher of {name} saw {len(seen)} events, {len(set(seen))} of the {last}; end: {ended}")
    found += [f"{name} has a job and no line in the audit" for name in submitted - asked]
    found += [f"{name} is known to the cluster and not to the home" for name in submitted - set(registered(home))]
    found += [f"{key}: {n} times" for key, n in told.answers.items() if key.split()[-1].startswith("5")]
    return found


def percentiles(seconds: list[float]) -> tuple[float, float, float]:
    """Milliseconds: median, 95th and 99th percentile."""
    ranked = sorted(seconds)
    p50, p95, p99 = (1000 * ranked[min(len(ranked) - 1, int(len(ranked) * share))] for share in (0.5, 0.95, 0.99))
    return p50, p95, p99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--submitters", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kill", type=int, default=0, metavar="TIMES", help="SIGKILL of the service, spread evenly")
    parser.add_argument("--active", type=int, default=2, help="studies at once; each has a driver on the cluster")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # service and cluster end in any case
    folder = Path(tempfile.mkdtemp(prefix="oec-load-"))
    home = open_home(folder / "home")
    tokens = TokenFile(home)
    readers = [tokens.add(f"reader-{i}", "read", None) for i in range(given.watchers)]
    runners = [tokens.add(f"runner-{i}", "run", None) for i in range(given.submitters)]
    server = Server(home, free_port(), folder / "serve.log", active=given.active)
    try:
        print(f"{given.watchers} watchers, {given.submitters} submitters, {given.seconds:g} s, {given.kill} kills")
        told = asyncio.run(run(server, readers, runners, seconds=given.seconds, kills=given.kill))
        found = wrong(told, home)
    finally:
        server.end()
        stop_head(home)
    for what, seconds in sorted(told.seconds.items()):
        p50, p95, p99 = percentiles(seconds)
        print(f"{what:8} {len(seconds):5} answers, ms: p50 {p50:7.0f}  p95 {p95:7.0f}  p99 {p99:7.0f}")
    print(", ".join(f"{key}: {n}" for key, n in sorted(told.answers.items())))
    events = sum(len(seen) for _, seen, _ in told.watched)
    print(f"{len(told.accepted)} studies accepted; {len(told.watched)} watches of {events} events; {given.kill} kills")
    print("\n".join(found) or "nothing lost")
    if found:
        print((folder / "serve.log").read_text()[-3000:])
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Event streams from a real server: a client receives every ledger event exactly once, even after reconnecting, and
however the study ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any

import httpx2
import pytest
import uvicorn

from service.background import wait_until
from service.home.layout import Home
from service.http.tokens import TokenFile
from tests.service.http.conftest import CELLS, FINISHED, Served, begin, served

WAIT_S = 60.0


@contextmanager
def listening(service: Served) -> Iterator[str]:
    """Serves the application on a loopback port, without its lifespan, because no Ray is needed."""
    server = uvicorn.Server(
        uvicorn.Config(service.app, port=0, lifespan="off", log_level="warning", timeout_graceful_shutdown=2)
    )
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        assert wait_until(lambda: server.started, WAIT_S, 0.05)  # a bound socket refuses until the server listens
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/api/v1/studies/smoke/events"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
    assert not thread.is_alive()


class Watcher:
    """A client in its own thread. ``events`` are tuples of id, event and data."""

    def __init__(self, url: str, service: Served, **headers: str) -> None:
        self.events: Queue[tuple[int | None, str, Any]] = Queue()
        self._headers = {"Authorization": service.reader.headers["Authorization"], **headers}
        self._url = url
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        try:
            with httpx2.stream("GET", self._url, headers=self._headers, timeout=WAIT_S) as stream:
                frame: dict[str, str] = {}
                for line in stream.iter_lines():
                    if line:
                        name, _, value = line.partition(": ")
                        frame[name] = value
                    elif frame:
                        if "event" in frame:
                            id = int(frame["id"]) if "id" in frame else None
                            self.events.put((id, frame["event"], json.loads(frame["data"])))
                        frame = {}
        except httpx2.TransportError:  # the server has exited
            self.events.put((None, "lost", None))
        else:
            self.events.put((None, "closed", None))

    def until(self, wanted: Callable[[int | None, str, Any], bool]) -> list[tuple[int | None, str, Any]]:
        """Returns the events up to and including the first that is ``wanted``."""
        found = []
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                found.append(self.events.get(timeout=max(0.0, deadline - time.monotonic())))
            except Empty:
                pytest.fail(f"the event did not arrive; received so far: {found}")
            if wanted(*found[-1]):
                return found


def ids(events: list[tuple[int | None, str, Any]]) -> list[int | None]:
    return [id for id, event, _ in events if event == "ledger"]


def test_every_event_arrives_once_and_then_the_stream_ends(home: Home) -> None:
    with begin(home) as ledger, listening(service := served(home)) as url:
        first = Watcher(url, service)
        seen = first.until(lambda id, event, data: event == "state")
        assert ids(seen) == list(range(1, ledger.seq + 1))
        progress = next(data for _, event, data in seen if event == "progress")
        assert progress == [
            {"cell": CELLS[2].id, "label": CELLS[2].label, "lr": CELLS[2].lr, "step": 10, "steps": 20, "val_loss": 3.25}
        ]
        late = Watcher(url, service, **{"Last-Event-ID": str(ledger.seq - 2)})
        assert ids(late.until(lambda id, event, data: event == "state")) == [ledger.seq - 1, ledger.seq]
        before = ledger.seq
        for cell in CELLS[2:]:
            ledger.end(cell.id, FINISHED)
        ledger.close()
        for watcher in (first, late):
            rest = watcher.until(lambda id, event, data: event == "closed")
            assert ids(rest) == list(range(before + 1, before + 5))
            assert [event for _, event, _ in rest[-2:]] == ["end", "closed"]
            assert [data["state"] for _, event, data in rest if event == "state"][-1] == "ended"
        told = next(data for id, _, data in rest if id == before + 1)
        assert (told["event"], told["cell"], told["val_loss"]) == ("finished", CELLS[2].id, 2.5)


def test_a_ledger_that_was_started_over(home: Home) -> None:
    with listening(service := served(home)) as url:
        first = begin(home)
        watcher = Watcher(url, service)
        watcher.until(lambda id, event, data: event == "state")
        path = home.ledger("smoke")
        path.unlink()
        for metrics in home.study("smoke").glob("cells/*/*"):
            metrics.unlink()
            metrics.parent.rmdir()
        with begin(home) as second:
            seen = watcher.until(lambda id, event, data: id == second.seq)
            assert [event for _, event, _ in seen if event != "state"][:2] == ["reset", "ledger"]
            assert ids(seen) == list(range(1, second.seq + 1))
            stale = Watcher(url, service, **{"Last-Event-ID": "99999"})
            assert ids(stale.until(lambda id, event, data: event == "state")) == list(range(1, second.seq + 1))
        first.close()


def test_a_removed_token_ends_its_stream(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.events.KEEPALIVE_S", 0.5)
    with begin(home), listening(service := served(home)) as url:
        watcher = Watcher(url, service)
        watcher.until(lambda id, event, data: event == "state")
        TokenFile(home).remove("a-reader")
        assert watcher.until(lambda id, event, data: event == "closed")[-1][1] == "closed"


def test_streams_are_counted_and_limited(home: Home) -> None:
    with begin(home), listening(service := served(home, max_watchers=2)) as url:
        watchers = [Watcher(url, service) for _ in range(2)]
        for watcher in watchers:
            watcher.until(lambda id, event, data: event == "state")
        assert "oec_watchers 2.0" in service.reader.get("/metrics").text
        refused = service.reader.get("/api/v1/studies/smoke/events")
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "5"

"""Serves a data set on loopback like the Hub, with the part of the Hub's HTTP interface that streaming uses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name: str
    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if re.fullmatch(rf"/api/datasets/{self.name}(/revision/{COMMIT})?", path):
            self.answer({"id": self.name, "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": []})
        elif match := re.fullmatch(rf"/api/datasets/{self.name}/tree/{COMMIT}/?(.*)", path):
            self.answer(self.listing(self.folder / match[1], "**/*" if "recursive=true" in self.path else "*"))
        elif (match := re.fullmatch(rf"/datasets/{self.name}/resolve/{COMMIT}/(.+)", path)) and (
            self.folder / match[1]
        ).is_file():
            self.content((self.folder / match[1]).read_bytes())
        else:
            known = path.startswith((f"/api/datasets/{self.name}", f"/datasets/{self.name}/"))
            self.respond(404, b"{}", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})

    def listing(self, folder: Path, pattern: str) -> list[dict[str, object]]:
        def entry(path: Path) -> dict[str, object]:
            kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
            return {"type": kind, "path": str(path.relative_to(self.folder)), "size": size, "oid": "0" * 40}

        return [entry(path) for path in sorted(folder.glob(pattern))]

    def content(self, data: bytes) -> None:
        headers = {"ETag": f'"{len(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.respond(206, data[first : last + 1], headers)
        else:
            self.respond(200, data, headers)

    def answer(self, content: object) -> None:
        self.respond(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def respond(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


@contextmanager
def serve(name: str, folder: Path) -> Iterator[str]:
    """Serves ``folder`` as the data set ``name``; yields the value for HF_ENDPOINT."""
    handler = type("NamedHandler", (Handler,), {"name": name, "folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()

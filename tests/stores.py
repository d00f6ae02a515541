"""Runs object stores on this machine: moto's S3 server and an emulator of Google Cloud Storage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from service.cluster.connection import free_port
from trainers.storage import bucket as buckets

UP_S = 60.0
GOOGLE = """
import sys, time
from http import HTTPStatus
from gcp_storage_emulator.handlers import objects

insert = objects.insert

def insert_unless_present(request, response, storage, *rest, **more):
    '''Adds ifGenerationMatch=0, "only if there is no such object", which the emulator does not support.'''
    name = request.query.get("name", [None])[0] or request.data["meta"]["name"]
    if request.query.get("ifGenerationMatch") == ["0"]:
        try:
            storage.get_file_obj(request.params["bucket_name"], name)
            response.status = HTTPStatus.PRECONDITION_FAILED
            return None
        except FileNotFoundError:
            pass
    return insert(request, response, storage, *rest, **more)

objects.insert = insert_unless_present
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.server import create_server

FileNotFoundError = NotFound
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
time.sleep(10**6)
"""


@dataclass
class Store:
    """A running store with a bucket named ``bucket``."""

    kind: str
    environment: Mapping[str, str]
    process: psutil.Popen

    def home(self) -> str:
        """Returns a new URL in the bucket."""
        return f"{self.kind}://bucket/{uuid.uuid4().hex[:8]}/home"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def store(kind: str, folder: Path) -> Iterator[Store]:
    """Runs a store, with its address and credentials in this process's environment."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    if kind == "s3":
        command = [str(Path(sys.executable).with_name("moto_server")), "--port", str(port)]
        names = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "us", "AWS_SECRET_ACCESS_KEY": "ours"}
        names |= {"AWS_DEFAULT_REGION": "us-east-1"}
    else:
        command = [sys.executable, "-c", GOOGLE, str(port)]
        names = {"STORAGE_EMULATOR_HOST": address, "GOOGLE_CLOUD_PROJECT": "ours"}
    before = {name: os.environ.get(name) for name in names}
    with (folder / f"{kind}.log").open("wb") as log:
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    os.environ |= names
    buckets._filesystem.cache_clear()  # it holds the old address
    try:
        made = Store(kind, names, process)
        deadline = time.monotonic() + UP_S
        while True:
            try:
                if kind == "s3":
                    buckets._filesystem(kind).mkdir("bucket")
                buckets.Bucket.open(f"{kind}://bucket/any")
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield made
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        buckets._filesystem.cache_clear()

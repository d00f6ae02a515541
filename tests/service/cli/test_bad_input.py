"""Every bad input of the README, on the real command: exit code 2 and one message with field, value and remedy, before
Ray starts and without losing anything. One input of each kind is tested in a separate process, as a shell sees it."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import yaml

from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.cluster.jobs import Jobs, entrypoint_command
from service.home.ledger import Ledger
from tests.service.oec import OEC, environment, invoked, oec
from trainers.data import write_shard

ROOT = Path(__file__).parents[3]


def refused(result: subprocess.CompletedProcess[str], home: Path, *parts: str) -> None:
    """Checks that the command ended as it should on bad input, and that its single message contains ``parts``."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    (message,) = [line for line in result.stderr.splitlines() if line]
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert not (home / "ray").exists(), "Ray was started"


def smoke(**changes: object) -> dict[str, object]:
    return yaml.safe_load(Study.load("smoke").to_yaml()) | {"name": "mine"} | changes


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


FIELDS = {
    "unknown method": (smoke(methods=["zloss"]), "methods.0.method", "'zloss'", "did you mean 'z-loss'"),
    "unknown scale": (smoke(scales=["17M"]), "scales", "'17M'", "16M"),
    "unknown field": (smoke(learning_rates=[1]), "learning_rates", "lrs"),
    "unknown field in place of a required one": (
        {"name": "mine", "scale": ["tiny"], "methods": ["baseline"], "lrs": [1]},
        "oec: scale: ",
        "did you mean 'scales'?",
    ),
    "unknown nested field": (smoke(training={"step": 1}), "training.step", "did you mean 'steps'"),
    "negative lr": (smoke(lrs=[-1, 1]), "lrs", "not positive", "above 0"),
    "infinite lr": (smoke(lrs=[1, float("inf")]), "lrs.1", "inf", "finite"),
    "nan lr": (smoke(lrs=[float("nan")]), "lrs.0", "nan", "finite"),
    "zero gamma": (smoke(methods=[{"method": "z-loss", "gamma": [0]}]), "methods.0.gamma", "not positive"),
    "infinite gamma": (smoke(methods=[{"method": "z-loss", "gamma": [float("inf")]}]), "methods.0.gamma.0", "inf"),
    "empty grid": (smoke(lrs=[]), "lrs", "empty", "at least one"),
    "unsorted grid": (smoke(lrs=[2, 1]), "lrs", "[2, 1]", "sort"),
    "duplicate in grid": (smoke(lrs=[1, 1]), "lrs", "[1, 1]", "duplicates"),
    "no methods": (smoke(methods=[]), "methods", "empty"),
    "unknown attention norm": (
        smoke(attention_norms=["qk-norms"]),
        "attention_norms",
        "'qk-norms'",
        "did you mean 'qk-norm'",
    ),
    "one attention norm without a list": (smoke(attention_norms="qk-norm"), "attention_norms", "'qk-norm'"),
    "no attention norms": (smoke(attention_norms=[]), "attention_norms", "empty", "at least one"),
    "attention norm twice": (smoke(attention_norms=["none", "none"]), "attention_norms", "duplicate"),
    "method twice": (smoke(methods=["baseline", "baseline"]), "methods", "duplicate"),
    "gamma for baseline": (smoke(methods=[{"method": "baseline", "gamma": [1]}]), "methods.0", "baseline", "remove"),
    "batch not divided": (
        smoke(resources={"workers": 3}),
        "training.batch_size 4",
        "resources.workers 3",
        "use 3 or 6",
    ),
    "too few to evaluate": (
        smoke(training={"eval_sequences": 1}),
        "eval_sequences 1",
        "workers 2",
    ),
    "edge that no factor is": (smoke(refine={"edge": 1}), "refine.edge", "1 is not allowed", "1.01"),
    "edge that is not a number": (smoke(refine={"edge": float("nan")}), "refine.edge", "nan", "finite"),
    "negative trials": (smoke(refine=-1), "refine.trials", "-1", "greater than or equal to 0"),
    "no cells": (smoke(refine={"edge": 2, "budget": {"cells": 0}}), "refine.budget.cells", "greater than 0"),
    "negative minutes": (smoke(refine={"edge": 2, "budget": {"minutes": -5}}), "refine.budget.minutes", "-5"),
    "endless minutes": (smoke(refine={"edge": 2, "budget": {"minutes": float("inf")}}), "budget.minutes", "finite"),
    "budget of nothing": (
        smoke(refine={"budget": {"cells": 5}}),
        "refine.budget",
        "refine.trials or refine.edge",
    ),
    "weights of no kind": (smoke(keep_weights="all"), "keep_weights", "'all'", "none, last or {every: STEPS}"),
    "weights every no steps": (smoke(keep_weights={"every": 0}), "keep_weights.every", "greater than 0"),
    "betas": (smoke(training={"betas": [2, -1]}), "training.betas.0", "less than 1"),
    "a number with too many digits": ("name: " + "9" * 5000, "study", "not YAML"),
    "nested too deeply": ("name: " + "[" * 2000, "study", "not YAML"),
    "a key twice": ("name: a\nlrs: [1]\nname: b\n", "study", "has the key 'name' twice, at line 1 and line 3"),
    "sequence too long": (
        smoke(training={"sequence_length": 10**7, "precision": "float32"}),
        "sequence_length",
        "10000000",
    ),
    "name leaves the home": (smoke(name="../mine"), "name", "'../mine'", "not a valid name"),
    "missing field": ({"name": "mine"}, "oec: scales is missing"),
    "text without a path": (smoke(data={"source": "text"}), "data", "data.path"),
    "text that is not there": (smoke(data={"source": "text", "path": "/nowhere"}), "data.path", "/nowhere"),
    "not YAML": ("name: a\n  lrs: [1]", "study", "not YAML at line 2 (mapping values are not allowed here)"),
    "not a mapping": ("- a", "study", "mapping"),
    "more workers than cores": (
        smoke(resources={"workers": 512}, training={"batch_size": 512, "eval_sequences": 512}),
        "resources.workers",
        "512 workers x 1 CPU = 512 CPU",
        "use at most",
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_bad_study(name: str, tmp_path: Path) -> None:
    content, *parts = FIELDS[name]
    study = write(tmp_path / "study.yaml", content)
    refused(invoked("run", study, home=tmp_path / "home"), tmp_path / "home", *parts)


def header(magic: int = 20240520, version: int = 1, count: int = 1000) -> bytes:
    return struct.pack("<256i", magic, version, count, *[0] * 253)


BODY = np.zeros(1000, dtype=np.uint16).tobytes()
SHARDS: dict[str, tuple[bytes | None, tuple[str, ...]]] = {
    "missing": (None, ("data.path",)),
    "empty": (b"", ("train.bin", "empty")),
    "truncated": (header() + BODY[:-2], ("train.bin", "1000")),
    "wrong magic": (header(magic=1) + BODY, ("train.bin", "magic")),
    "wrong version": (header(version=9) + BODY, ("train.bin", "version")),
    "token id above the vocabulary": (header() + BODY[:-2] + b"\xff\xff", ("train.bin", "65535", "999")),
}


@pytest.mark.parametrize("name", SHARDS)
def test_bad_shard(name: str, tmp_path: Path) -> None:
    content, parts = SHARDS[name]
    if content is not None:
        (tmp_path / "train.bin").write_bytes(content)
    write_shard(tmp_path / "validation.bin", np.zeros(1000, dtype=np.uint16))
    data = {
        "source": "shards",
        "path": str(tmp_path / "train.bin"),
        "validation": str(tmp_path / "validation.bin"),
        "vocab_size": 256,
    }
    study = write(tmp_path / "study.yaml", smoke(data=data))
    refused(oec("run", study, home=tmp_path / "home"), tmp_path / "home", *parts)


def test_home_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")  # root may write to any folder
    refused(oec("run", "smoke", home=tmp_path / "home"), tmp_path / "home", "--home", "not writable")


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://127.0.0.1:9", "not reachable"),
        ("http://localhost:port", "not an address"),
        ("ftp://somewhere", "is not an MLflow store"),
        ("sqlite:////nowhere/at/all/mlflow.db", "does not exist"),
    ],
)
def test_tracking_uri_that_cannot_be_used(uri: str, problem: str, tmp_path: Path) -> None:
    result = oec("run", "smoke", home=tmp_path / "home", MLFLOW_TRACKING_URI=uri)
    refused(result, tmp_path / "home", "MLFLOW_TRACKING_URI", uri, problem)


def test_password_of_a_tracking_uri_is_not_shown(tmp_path: Path) -> None:
    result = oec("run", "smoke", home=tmp_path / "home", MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:9")
    refused(result, tmp_path / "home", "http://127.0.0.1:9")
    assert "secret" not in result.stderr + result.stdout


def test_ray_client_address(tmp_path: Path) -> None:
    result = oec("run", "smoke", "--address", "ray://127.0.0.1:9", home=tmp_path / "home")
    assert result.returncode == 2
    assert "Ray Client" in result.stderr


def test_a_study_that_never_started_may_be_changed(tmp_path: Path) -> None:
    """The first run could not reach its cluster."""
    home = tmp_path / "home"
    for lrs in ([1e-3], [1e-2]):
        study = write(tmp_path / "study.yaml", smoke(lrs=lrs))
        result = oec("run", study, "--address", "127.0.0.1:9", home=home)
        assert "is not a Ray cluster" in result.stderr, result.stderr
    assert Study.load(str(home / "studies" / "mine" / "study.yaml")).lrs == (1e-2,)


def test_no_ray_cluster_at_the_address(tmp_path: Path) -> None:
    result = oec("run", "smoke", "--address", "127.0.0.1:9", home=tmp_path / "home")
    assert result.returncode == 2
    assert "--address: '127.0.0.1:9' is not a Ray cluster" in result.stderr


@pytest.mark.parametrize("command", ["run", "plan"])
def test_no_such_study(command: str, tmp_path: Path) -> None:
    refused(oec(command, "nowhere", home=tmp_path / "home"), tmp_path / "home", "'nowhere'", "demo")


def test_study_changed_under_a_name_of_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = Study.parse(yaml.safe_dump(smoke()))
    folder = home / "studies" / "mine"
    cells = Plan(before, "data").cells
    with Ledger(folder / "ledger.jsonl", "mine", write=True) as ledger:
        ledger.plan(cells)
        ledger.start(cells[0].id)
    (folder / "study.yaml").write_text(before.to_yaml())
    study = write(tmp_path / "study.yaml", smoke(lrs=[1, 2]))
    refused(oec("run", study, home=home), home, "'mine'", "lrs", "another name")
    assert (folder / "study.yaml").read_text() == before.to_yaml(), "the study in the home was overwritten"


def test_data_changed_under_a_study_of_the_home(tmp_path: Path) -> None:
    home, text = tmp_path / "home", tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 1000)
    content = smoke(data={"source": "text", "path": str(text), "tokenizer": "bytes"})
    study = write(tmp_path / "study.yaml", content)
    path = home / "studies" / "mine" / "ledger.jsonl"
    with Ledger(path, "mine", write=True) as ledger:
        ledger.plan(Plan(Study.parse(yaml.safe_dump(content)), "0123456789abcdef").cells)
    before = path.read_bytes()
    refused(oec("run", study, home=home), home, "data", "0123456789abcdef", "another name")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("report", "nowhere"), ("SOURCE", "'nowhere'")),
        (("report", "nowhere.csv"), ("nowhere.csv",)),
        (("status", "nowhere"), ("STUDY", "'nowhere'")),
        (("sync", "smoke"), ("STUDY", "'smoke'")),
        (("train", "smoke", "--method", "zloss", "--lr", "1"), ("methods.0.method", "'zloss'")),
        (("train", "smoke", "--method", "baseline", "--gamma", "1", "--lr", "1"), ("methods.0", "remove gamma")),
        (("train", "smoke", "--method", "baseline", "--lr", "nan"), ("lrs.0", "finite")),
        (("train", "smoke", "--method", "baseline", "--lr", "1", "--scale", "1T"), ("scales", "'1T'")),
        (
            ("train", "smoke", "--method", "baseline", "--lr", "1", "--attention-norm", "qkvnorm"),
            ("attention_norms", "'qkvnorm'", "did you mean 'qkv-norm'"),
        ),
    ],
)
def test_other_commands(arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    refused(invoked(*arguments, home=tmp_path / "home"), tmp_path / "home", *parts)


NOWHERE = ("--cluster", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("submit", "smoke", *NOWHERE), ("--cluster", "'http://127.0.0.1:9' does not answer", "http://HOST:8265")),
        (("jobs", *NOWHERE), ("--cluster", "does not answer")),
        (("logs", "smoke", *NOWHERE), ("--cluster", "does not answer")),
        (("stop", "smoke", *NOWHERE), ("--cluster", "does not answer")),
        (("jobs", "--cluster", "127.0.0.1:9"), ("--cluster", "'http://127.0.0.1:9' does not answer")),
        (("jobs", "--cluster", "ray://127.0.0.1:10001"), ("--cluster", "'ray://127.0.0.1:10001'", "http://HOST:8265")),
        (("jobs", "--cluster", "http://"), ("--cluster", "'http:'", "http://HOST:8265")),
        (("submit", "smoke", *NOWHERE, "--home", "home"), ("--home", "'home' is a relative path", "absolute")),
        (("submit", "smoke", *NOWHERE, "--home", "hdfs://b/home"), ("--home", "'hdfs://b/home'", "s3://BUCKET/PREFIX")),
        (("submit", "smoke", *NOWHERE, "--home", "s3:///home"), ("--home", "'s3:///home'", "s3://BUCKET/PREFIX")),
        (("serve", "--home", "s3://b/home"), ("--home", "'s3://b/home'", "give a folder")),
        (
            ("train", "smoke", "--method", "baseline", "--lr", "1", "--home", "gs://b/home"),
            ("--home", "'gs://b/home'", "give a folder"),
        ),
        (("submit", "smoke", *NOWHERE, "--driver-label", "x"), ("--driver-label", "'x'", "KEY=VALUE")),
        (("submit", "smoke", *NOWHERE, "--working-dir", "/nowhere"), ("--working-dir", "'/nowhere'", "not a folder")),
        (
            ("submit", "smoke", *NOWHERE, "--working-dir", str(ROOT), "--max-megabytes", "0.1"),
            ("--working-dir", "MB, above 0.1 MB; the largest files are", ".rayignore"),
        ),
        (("run", "smoke", "--home", "gs:///home"), ("--home", "'gs:///home'", "gs://BUCKET/PREFIX")),
        (("status", "--home", "file://host/home"), ("--home", "'file://host/home'", "file:///absolute/path")),
    ],
)
def test_jobs_and_homes(arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    refused(invoked(*arguments, home=tmp_path / "home"), tmp_path / "home", *parts)


def test_a_study_with_a_relative_path_cannot_be_submitted(tmp_path: Path) -> None:
    study = write(tmp_path / "study.yaml", smoke(data={"source": "text", "path": "corpus", "tokenizer": "bytes"}))
    refused(oec("submit", study, *NOWHERE, home=tmp_path / "home"), tmp_path / "home", "data.path", "'corpus'")


def test_a_study_too_long_for_a_command_cannot_be_submitted() -> None:
    with pytest.raises(InvalidInput, match="100,000 bytes"):
        entrypoint_command(Study.parse(yaml.safe_dump(smoke(description="x" * 100_000))), retry_crashed=False)


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (200, b"hello", "is not a Ray cluster"),
        (200, b'{"version": "1", "ray_version": "1.0.0"}', "is not a Ray cluster"),
        (404, b"", "is not a Ray cluster"),
        (401, b"who are you", "rejects the token"),
        (403, b"not you", "rejects the token"),
    ],
)
def test_a_server_that_is_not_our_cluster_is_refused(status: int, body: bytes, problem: str) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keeps requests out of the test's output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InvalidInput) as said:
            Jobs(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert said.value.field == "--cluster"
    assert problem in str(said.value)


def test_a_study_can_be_read_from_standard_input(tmp_path: Path) -> None:
    """Includes input that is not UTF-8 and therefore not a study."""
    for content, parts in ((yaml.safe_dump(smoke(lrs=[2, 1])).encode(), ("lrs", "[2, 1]")), (b"\xff", ("study",))):
        done = subprocess.run(
            [str(OEC), "plan", "-"], input=content, capture_output=True, env=environment(tmp_path / "home"), check=False
        )
        assert done.returncode == 2, done
        for part in parts:
            assert part in done.stderr.decode()


def damage_sequence(content: bytes) -> bytes:
    return content.replace(b'"seq":2', b'"seq":3', 1)


def damage_json(content: bytes) -> bytes:
    return content.replace(b"{", b"", 1)


@pytest.mark.parametrize("damage", [damage_sequence, damage_json])
def test_damaged_ledger_is_refused_with_the_line_number(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    home = tmp_path / "home"
    study = Study.parse(yaml.safe_dump(smoke()))
    path = home / "studies" / "mine" / "ledger.jsonl"
    with Ledger(path, "mine", write=True) as ledger:
        ledger.plan(Plan(study, "data").cells)
    path.write_bytes(damage(path.read_bytes()))
    refused(oec("status", "mine", home=home), home, "ledger.jsonl:", "damaged")

"""``oec doctor`` on this machine, on a cluster of two nodes, and on a cluster with planted defects."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiktoken import load
from tiktoken_ext import openai_public

from benchmarks.nodes import Nodes
from service.cluster import node_facts
from service.cluster.connection import free_port
from service.cluster.doctor import examine, local_facts
from service.home.location import open_home
from tests.service.oec import oec

NAMES = [
    "python", "oec-sensitivity", "torch", "ray", "devices", "memory", "/dev/shm", "temporary folder", "home", "MLflow",
    "tokenizer", "data",
]  # fmt: skip
DEFECTS = {"oec-sensitivity": "0.0.1", "torch": "2.99.0"}
"""Versions that the defective node claims to have."""
PLANTED_ELSEWHERE = {"torch": "warning", "/dev/shm": "problem", "home": "problem"}
PLANTED = {"oec-sensitivity": "warning"} | PLANTED_ELSEWHERE


def asked(*arguments: object, home: Path, **more: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Returns the exit code, and the checks by name."""
    done = oec("doctor", "--json", *arguments, home=home, **more)
    assert done.returncode in (0, 1), done.stderr
    content = json.loads(done.stdout)
    assert content["ok"] == (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in content["checks"]}


def facts(home: Path) -> node_facts.Facts:
    found = local_facts(open_home(home), node_facts.node_facts())
    found["driver"] |= {"mlflow": "sqlite", "hosts": []}
    return found


def test_this_machine(tmp_path: Path) -> None:
    code, checks = asked(home=tmp_path, TIKTOKEN_CACHE_DIR=str(tmp_path))
    assert code == 0, checks
    assert list(checks)[: len(NAMES)] == NAMES
    assert checks["tokenizer"]["status"] == "warning"
    assert "TIKTOKEN_CACHE_DIR" in checks["tokenizer"]["remedy"]
    assert str(tmp_path) in checks["home"]["text"]
    shown = oec("doctor", home=tmp_path).stdout.splitlines()
    assert shown[0].split()[:2] == ["ok", "python"]


def test_defects_of_this_machine(tmp_path: Path) -> None:
    """The machine has a temporary folder with a long path, an MLflow server that does not respond, and a proxy that is
    also used for internal addresses."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    more = {"RAY_TMPDIR": str(long), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    code, checks = asked(home=tmp_path, HTTP_PROXY="http://10.1.1.1:3128", NO_PROXY="", **more)
    assert code == 1
    problems = {name for name, check in checks.items() if check["status"] == "problem"}
    assert problems == {"temporary folder", "MLflow"}
    assert "the limit is 107" in checks["temporary folder"]["text"]
    assert "RAY_TMPDIR" in checks["temporary folder"]["remedy"]
    assert "not reachable" in checks["MLflow"]["text"]
    assert checks["proxy"]["remedy"] == "add 127.0.0.1 to NO_PROXY"
    address = "https://me:secret@mlflow.invalid"
    _, checks = asked(home=tmp_path, MLFLOW_TRACKING_URI=address)
    assert "https://mlflow.invalid" in checks["MLflow"]["text"]
    assert "secret" not in str(checks)
    assert "None" not in checks["MLflow"]["text"]


def test_a_proxy_in_front_of_an_internal_cluster_is_reported(tmp_path: Path) -> None:
    proxy = {"HTTP_PROXY": f"http://127.0.0.1:{free_port()}", "NO_PROXY": ""}
    for command in (("doctor",), ("submit", "smoke")):
        done = oec(*command, "--cluster", "http://ray-head.inner:8265", home=tmp_path, **proxy)
        assert done.returncode == 2, done
        assert "is not reachable through the proxy" in done.stderr
        assert "add ray-head.inner to NO_PROXY" in done.stderr


def test_a_relative_home_on_a_cluster_is_refused(tmp_path: Path) -> None:
    done = oec("doctor", "--cluster", "http://127.0.0.1:1", "--home", "here", home=tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "--home: 'here' is a relative path" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_is_found_where_tiktoken_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert node_facts.tokenizer() is None
    monkeypatch.setattr(load, "read_file", lambda address: address.encode())  # no network access
    load.read_file_cached(node_facts.RANKS_URL)
    (kept,) = tmp_path.iterdir()
    assert node_facts.tokenizer() == str(kept)
    assert node_facts.RANKS_URL in inspect.getsource(openai_public), "tiktoken downloads the ranks from another address"


@pytest.mark.parametrize(
    ("change", "name", "status", "text"),
    [
        ({"python": "3.12.1"}, "python", "problem", "3.12.1 (other)"),
        ({"ray": "2.61.0"}, "ray", "problem", "2.61.0 (other)"),
        ({"torch": "2.99.0"}, "torch", "warning", "2.99.0 (other)"),
        ({"oec-sensitivity": None}, "oec-sensitivity", "problem", "not installed (other)"),
        ({"memory_free": 10**8}, "memory", "problem", "100.0 MB (other)"),
        ({"shm_free": 0}, "/dev/shm", "problem", "0 bytes (other)"),
        ({"home_problem": "Permission denied"}, "home", "problem", "Permission denied (other)"),
        ({"problem": "does not answer"}, "nodes", "problem", "does not answer (other)"),
    ],
)
def test_differences_are_reported_with_their_node(
    change: dict[str, Any], name: str, status: str, text: str, tmp_path: Path
) -> None:
    found = facts(tmp_path)
    found["nodes"].append(found["nodes"][0] | {"address": "other"} | change)
    checks = {check.name: check for check in examine(found)}
    assert (checks[name].status, text in checks[name].text) == (status, True), checks[name]
    assert checks[name].remedy


def reported(home: Path, word: str, *python: str, within: Sequence[str] = ()) -> node_facts.Facts:
    """Returns what a Python process reports that has only the file ``node_facts.py``, as on a node."""
    run = "import json, runpy, sys; found = runpy.run_path(sys.argv[1])["
    run += "'node_facts'](*sys.argv[2:]); print(json.dumps(found))"
    command = [*within, *(python or (sys.executable,)), "-c", run, node_facts.__file__, str(home), word, "other"]
    # With a checkout as the working directory, its metadata would be found first.
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    found: node_facts.Facts = json.loads(done.stdout)
    return found


def shared_home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "driver").write_text("word")
    return tmp_path / "home"


def test_a_python_without_packages_reports_for_its_node(tmp_path: Path) -> None:
    home, found = shared_home(tmp_path), facts(tmp_path)
    node = reported(home, "word", sys.executable, "-I", "-S")
    assert [node[package] for package in node_facts.PACKAGES] == [None, None, None]
    assert node["home_problem"] == ""
    assert (home / "other").read_text() == "word"
    found["nodes"].append(found["nodes"][0] | {"address": "other"} | node)
    problems = {check.name for check in examine(found) if check.status == "problem"}
    assert problems == set(node_facts.PACKAGES)


def test_a_node_with_planted_defects_reports_them(tmp_path: Path) -> None:
    home, found = shared_home(tmp_path), facts(tmp_path)
    (claims := tmp_path / "claims").mkdir()
    node = reported(home, "word", within=plant(home, claims))
    found["nodes"].append(found["nodes"][0] | {"address": "other"} | node)
    checks = {check.name: check for check in examine(found) if check.status != "ok" and check.name != "tokenizer"}
    assert {name: check.status for name, check in checks.items()} == PLANTED
    assert "No such file or directory (other)" in checks["home"].text
    assert "2.99.0 (other)" in checks["torch"].text


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with Nodes() as nodes, pytest.MonkeyPatch.context() as patch:
        # A job runs the `python` on the PATH of `ray start`.
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        nodes.head("--num-cpus", "1")
        nodes.worker("--num-cpus", "1")
        yield nodes


def plant(home: Path, claims: Path) -> list[str]:
    """Returns a prefix for a command that gives it a small /dev/shm, no view of the home, and other package
    versions."""
    for package, number in DEFECTS.items():
        folder = claims / f"{package.replace('-', '_')}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")
    mounts = f"mount -t tmpfs -o size=200m none /dev/shm && mount -t tmpfs none '{home}'"
    script = f"{mounts} && export PYTHONPATH='{claims}' && exec \"$@\""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount file systems")
    return command


@pytest.mark.slow
def test_a_cluster(cluster: Nodes, tmp_path: Path) -> None:
    """The facts are collected by a driver that joins the cluster, and by a job, which does not need this package on any
    node."""
    for address in (cluster.address, f"http://127.0.0.1:{cluster.dashboard_port}"):
        code, checks = asked("--cluster", address, home=tmp_path, **cluster.environment)
        assert code == 0, checks
        assert list(checks)[: len(NAMES)] == NAMES
        assert checks["devices"]["text"] == "2 cores and 0 GPUs on all 2 nodes"
        assert checks["home"]["text"] == f"{tmp_path} is writable from all 2 nodes"
    assert not list(tmp_path.glob(".doctor-*")), "files are left in the home"


@pytest.mark.slow
def test_a_cluster_with_a_defective_node(cluster: Nodes, tmp_path: Path) -> None:
    """Each defect is reported with its node, in the order of the checks."""
    home, claims = tmp_path / "home", tmp_path / "claims"
    home.mkdir()
    claims.mkdir()
    cluster.worker("--num-cpus", "1", within=plant(home, claims))
    more = cluster.environment | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    for address in (cluster.address, f"http://127.0.0.1:{cluster.dashboard_port}"):
        code, checks = asked("--cluster", address, home=home, **more)
        assert code == 1
        found = {name: check["status"] for name, check in checks.items() if check["status"] != "ok"}
        assert found.pop("tokenizer", "warning") == "warning"
        # A driver that runs from a checkout ships its own metadata to its workers.
        assert found.pop("oec-sensitivity", "warning") == "warning"
        assert found == PLANTED_ELSEWHERE | {"MLflow": "problem"}
        assert "2.99.0 (" in checks["torch"]["text"]
        assert "No such file or directory (" in checks["home"]["text"]
        assert "refused" in checks["MLflow"]["text"]
        assert all(check["remedy"] for check in checks.values() if check["status"] != "ok")

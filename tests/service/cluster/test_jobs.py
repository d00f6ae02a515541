"""Studies as jobs on a real cluster, with a head without CPUs and two nodes with one CPU each."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks.invariants import ledger_of
from benchmarks.nodes import kill
from benchmarks.study_run import newest_step
from search_spaces.study import Study
from service.home.layout import Home
from service.home.studies import is_running
from tests.conftest import another_project
from tests.faults.cluster import Cluster
from tests.service.oec import OEC, environment, oec, start
from trainers.rows import read

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
DEADLINE_S = 240.0
FINISHED = r"6/6 cells \| 0 running \| [\d,]+ tokens/s \| \d+:\d\d elapsed \| 0:00 left \| best tiny "


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Each node has its own temporary folder, as if it were a separate machine: copies of a job's code are stored
    there."""
    with ExitStack() as nodes:
        patch = nodes.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        cluster = nodes.enter_context(Cluster())
        cluster.head("--num-cpus", "0")
        cluster.worker("--num-cpus", "1", *apart(cluster, "one"))
        cluster.worker("--num-cpus", "1", "--labels", "role=drivers", *apart(cluster, "two"))
        yield cluster


def apart(cluster: Cluster, name: str) -> list[str]:
    """Returns options that give a node its own folder for working directories, as on a separate machine."""
    return ["--temp-dir", str(cluster.folder / name)]


def url(cluster: Cluster) -> dict[str, str]:
    return {"OEC_CLUSTER": f"http://127.0.0.1:{cluster.dashboard_port}", **cluster.environment}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {DEADLINE_S:g} s: {what}"
        time.sleep(0.1)


class Line:
    """A local port that forwards to another one, and whose connections can be cut."""

    def __init__(self, port: int) -> None:
        self._port, self._open = port, list[socket.socket]()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> int:
        """Closes all connections and returns how many there were."""
        ended, self._open = self._open, []
        for one in ended:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        return len(ended) // 2

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _serve(self) -> None:
        with suppress(OSError):  # close was called
            while True:
                ends = (self._server.accept()[0], socket.create_connection(("127.0.0.1", self._port)))
                self._open += ends
                for way in (ends, ends[::-1]):
                    threading.Thread(target=self._carry, args=way, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # the connection was cut
            while piece := source.recv(65536):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory whose code leaves a trace when the driver and the workers run it."""
    folder = tmp_path_factory.mktemp("sources")
    for package in ("search_spaces", "trainers", "service", "dashboards"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, line in (
        ("service/__init__.py", "print('changed sources run')"),
        ("trainers/loop.py", "import os; Path(os.environ['OEC_HOME'], f'trained-under-{os.getppid()}').touch()"),
    ):
        with (folder / file).open("a") as source:
            source.write(f"{line}\n")
    return folder


@pytest.fixture(scope="module")
def home(cluster: Cluster, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which ``smoke`` was trained as a job, from a working directory. The client that followed it lost its
    connection every few seconds, and wrote the file ``log`` next to the home."""
    home = tmp_path_factory.mktemp("jobs") / "home"
    log, cuts = home.with_name("log"), 0
    with closing(Line(cluster.dashboard_port)) as line:
        through = url(cluster) | {"OEC_CLUSTER": f"http://127.0.0.1:{line.port}"}
        following = start("submit", "smoke", "--working-dir", sources, "--follow", home=home, log=log, **through)
        until(lambda: "6 to train" in log.read_text() or following.poll() is not None, "the study begins")
        while following.poll() is None:
            cuts += line.cut()
            time.sleep(5)
    assert following.returncode == 0, log.read_text()
    assert cuts > 1, "no connection was lost"
    return home


def study(folder: Path, **changes: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(Study.load("smoke").to_yaml()), **changes}))
    return path


def too_wide(folder: Path) -> Path:
    """Returns a study that its driver refuses within seconds."""
    training = {**Study.load("smoke").training.model_dump(mode="json"), "batch_size": 3}
    return study(folder, name="wide", resources={"workers": 3}, training=training)


def blind_to(home: Path) -> list[str]:
    """Returns a prefix for a command that hides the home behind an empty folder, as on a machine that does not mount
    it."""
    command = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{home}" && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount file systems")
    return command


def test_a_study_as_a_job_shows_what_a_local_run_shows(cluster: Cluster, home: Path) -> None:
    """No line of the log is missing or shown twice, although the connection was lost repeatedly."""
    job = f"oec-smoke-{Study.load('smoke').hash}-1"
    _, begun, shown = home.with_name("log").read_text().partition(f"job {job}: smoke, home {home}\n")
    assert begun
    assert re.search(FINISHED, shown), shown
    assert "study smoke: 6 cells, 6 to train" in shown
    assert f"report: {home}/studies/smoke/report/report.html" in shown
    assert shown.count("report: ") == 1
    assert "entrypoint" not in shown
    assert len(ledger_of(home, "smoke").ended()) == 6
    assert not list(home.glob(".probe-*"))
    assert oec("logs", "smoke", home=home, **url(cluster)).stdout == shown
    assert oec("logs", job, "--follow", home=home, **url(cluster)).stdout == shown
    listed = oec("jobs", home=home, **url(cluster)).stdout
    assert re.search(rf"{job} +smoke +succeeded +0 +\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d +{home}", listed), listed


def test_what_the_driver_refuses_is_refused_by_the_job_wherever_it_runs(cluster: Cluster, tmp_path: Path) -> None:
    """The driver runs on the head, or on the node with the given label."""
    file = too_wide(tmp_path)
    homes = {(): tmp_path / "head", ("--driver-label", "role=drivers"): tmp_path / "drivers"}
    done = [oec("submit", file, "--follow", *options, home=home, **url(cluster)) for options, home in homes.items()]
    assert [one.returncode for one in done] == [2, 2], done
    # For the other job Ray only knows the address of its log, which these nodes share.
    assert "3 workers x 1 CPU = 3 CPU, of 2; use at most 2 workers" in done[0].stdout
    assert "3 workers x 1 CPU = 3 CPU, of 2" in oec("jobs", home=tmp_path, **url(cluster)).stdout
    program = f"""
import json, ray
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient("http://127.0.0.1:{cluster.dashboard_port}")
ray.init("{cluster.address}", log_to_driver=False)
jobs = [job for job in client.list_jobs() if job.submission_id]  # the others are drivers that joined
heads = {{node["NodeID"]: "node:__internal_head__" in node["Resources"] for node in ray.nodes()}}
roles = {{node["NodeID"]: node["Labels"].get("role") for node in ray.nodes()}}
home = lambda job: job.runtime_env["env_vars"]["OEC_HOME"]
print(json.dumps({{home(job): (heads[job.driver_node_id], roles[job.driver_node_id]) for job in jobs}}))
"""
    nodes = json.loads(cluster.asked(program))
    assert [nodes[str(home)] for home in homes.values()] == [[True, None], [False, "drivers"]]


def test_concurrent_submissions_are_not_lost(cluster: Cluster, tmp_path: Path) -> None:
    """In two homes both jobs are accepted; in one home, one is accepted and the other is refused. The drivers stay
    pending because they wait for a resource."""
    file = study(tmp_path, name="racing")
    for homes, codes in ((("a", "b"), [0, 0]), (("c", "c"), [0, 2])):
        logs = [tmp_path / f"{home}{i}.log" for i, home in enumerate(homes)]
        at_once = [
            start("submit", file, "--driver-resource", "nowhere", home=tmp_path / home, log=log, **url(cluster))
            for home, log in zip(homes, logs, strict=True)
        ]
        assert sorted(one.wait(DEADLINE_S) for one in at_once) == codes, [log.read_text() for log in logs]
        jobs = {id for log in logs for id in re.findall(r"job (oec-racing-[0-9a-f]{12}-\d+)", log.read_text())}
        assert len(jobs) == len(set(homes)), jobs
        listed = oec("jobs", home=tmp_path, **url(cluster)).stdout
        for job in jobs:
            assert re.search(rf"{job} +racing +pending ", listed), listed


@pytest.mark.long
@pytest.mark.fault("oec stop of a job", times=2)
def test_a_stopped_job_resumes_when_it_is_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    """The job is stopped once through the home and once by the cluster. Both times its exit code is that of an
    interruption."""
    training = {**Study.load("smoke").training.model_dump(mode="json"), "steps": 100_000}
    long = {"name": "long", "methods": ["baseline"], "lrs": [1e-3], "refine": 0, "training": training}
    file = study(tmp_path, **long, intervals={"evaluate": 100, "checkpoint": 50}, resources={"workers": 1})
    home = tmp_path / "home"

    def submitted(beyond: int) -> str:
        said = oec("submit", file, home=home, **url(cluster))
        assert said.returncode == 0, said.stderr
        until(lambda: newest_step(home, "long") > beyond, f"step {beyond}: {said.stdout}")
        return said.stdout.split()[1].rstrip(":")

    first = submitted(100)
    again = oec("submit", file, home=home, **url(cluster))
    assert again.returncode == 2
    assert f"STUDY: 'long' is already running as job {first}" in again.stderr
    following = start("logs", "long", "--follow", home=home, log=tmp_path / "log", **url(cluster))
    assert oec("stop", "long", home=tmp_path, **url(cluster)).stdout == "long has stopped\n"
    assert following.wait(DEADLINE_S) == 75, (tmp_path / "log").read_text()
    assert "re-run the same command to resume" in (tmp_path / "log").read_text()

    stopped_at = time.time()
    second = submitted(newest_step(home, "long") + 100)
    assert (first[-1], second[-1]) == ("1", "2")
    command = [*blind_to(home), str(OEC), "stop", "long"]
    settings = environment(tmp_path, **url(cluster))
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=settings, check=False)
    assert stopped.stdout == "long has stopped\n", stopped.stderr
    assert not is_running(Home(home), "long")
    assert re.search(rf"{second} +long +stopped +75 ", oec("jobs", home=home, **url(cluster)).stdout)
    (cell,) = ledger_of(home, "long").entries
    rows = read(Home(home).metrics(cell, "long"))
    assert rows[1].time < stopped_at < rows[-1].time, "the cell started over instead of resuming from its checkpoint"


def test_rays_own_command_with_a_working_directory(
    cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    settings = json.dumps({"env_vars": {"OEC_HOME": str(home)}})
    said = cluster.job("submit", "--working-dir", ".", "--runtime-env-json", settings, "--", "oec", "run", "smoke")
    assert "succeeded" in said
    assert "6 cells, 0 to train" in said


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return another_project(tmp_path_factory.mktemp("project"))


@pytest.mark.parametrize("options", [(), ("--working-dir", ".")], ids=["submitted from there", "shipped"])
def test_packages_of_the_same_names_do_not_replace_ours_in_a_job(
    cluster: Cluster, project: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = oec("submit", "one.yaml", "--follow", *options, home=tmp_path / "home", cwd=project, **url(cluster))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1/1 cells" in done.stdout


def test_packages_of_the_same_names_do_not_replace_ours_in_a_job_submitted_with_rays_own_command(
    cluster: Cluster, project: Path, tmp_path: Path
) -> None:
    settings = json.dumps({"env_vars": {"OEC_HOME": str(tmp_path / "home")}})
    arguments = ("--working-dir", str(project), "--runtime-env-json", settings)
    said = cluster.job("submit", *arguments, "--", "oec", "run", "one.yaml")
    assert "1/1 cells" in said
    assert "succeeded" in said


def test_a_working_directory_is_what_runs_and_its_size_is_shown(cluster: Cluster, home: Path, sources: Path) -> None:
    """The code runs in the driver and in the workers of both nodes; each worker's parent is its own node's raylet."""
    log = home.with_name("log").read_text()
    assert re.match(rf"working directory {sources}: \d\d+ files, \d\.\d MB\n", log)
    assert "changed sources run" in log
    parents = [psutil.Process(int(path.name.rpartition("-")[2])) for path in home.glob("trained-under-*")]
    raylets = " ".join(argument for parent in parents for argument in parent.cmdline())
    for node in ("one", "two"):
        assert f"{cluster.folder / node}/session" in raylets, "workers of this node ran other sources"


def test_a_wrong_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    refused = oec("jobs", home=tmp_path, **url(cluster) | {"RAY_AUTH_TOKEN": "another-token-than-the-cluster-has"})
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "rejects the token; set RAY_AUTH_TOKEN" in line


@pytest.mark.long
def test_a_home_that_a_node_does_not_see_is_refused_before_any_cell(cluster: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    own = ["--num-cpus", "1", "--node-ip-address", "127.0.0.2", *apart(cluster, "blind")]
    node = cluster.worker(*own, within=blind_to(home))
    try:
        done = oec("submit", "smoke", "--follow", home=home, **url(cluster))
    finally:
        kill(node)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"--home: '{home}' is not seen by node 127.0.0.2 (No such file or directory)" in done.stdout
    assert set(ledger_of(home, "smoke").counts()) == {"planned"}
    assert not list(home.glob(".probe-*"))


@pytest.mark.long
def test_a_node_without_the_package_is_named_before_any_cell(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "oec_sensitivity.py").write_text("raise ModuleNotFoundError('it is not installed here')\n")
    own = ["--num-cpus", "1", "--node-ip-address", "127.0.0.3", *apart(cluster, "without")]
    node = cluster.worker(*own, within=["env", f"PYTHONPATH={tmp_path}"])
    try:
        done = oec("submit", "smoke", "--follow", home=tmp_path / "home", **url(cluster))
    finally:
        kill(node)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "has nodes that cannot run this package: 127.0.0.3 (" in done.stdout
    assert set(ledger_of(tmp_path / "home", "smoke").counts()) == {"planned"}


def test_a_driver_of_another_version_of_ray_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import ray\nray.__version__ = '1.0.0'\n")
    more = {"PYTHONPATH": str(tmp_path), **cluster.environment}
    done = oec("run", "smoke", "--address", cluster.address, home=tmp_path / "home", **more)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "is a cluster of other versions." in done.stderr
    assert "Ray: 1.0.0" in done.stderr


def test_the_environment_of_a_job_is_explicit(cluster: Cluster, tmp_path: Path) -> None:
    """The driver gets the submitter's MLflow address, whose password is never printed."""
    secret = "http://me:a-secret-word@127.0.0.1:9"
    settings = environment(tmp_path / "home", MLFLOW_TRACKING_URI=secret, **url(cluster))
    done = oec("submit", "smoke", "--follow", home=tmp_path / "home", **settings | {"OEC_HOME": str(tmp_path / "home")})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "MLFLOW_TRACKING_URI: 'http://127.0.0.1:9' is not reachable" in done.stdout
    for shown in (done, oec("jobs", home=tmp_path, **url(cluster))):
        assert "a-secret-word" not in shown.stdout + shown.stderr

"""Checks docker/ without a container engine: its files are valid and match each other and the package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import compose_file
import mlflow.cli
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.dashboard.modules.job.cli import submit

from search_spaces.shipped import shipped
from service import __version__
from service.cli.commands import main
from service.cluster.connection import ENVIRONMENT

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")

FOLDER = compose_file.FOLDER
ROOT = Path(__file__).parents[2]
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = compose_file.load()
SERVICES = COMPOSE["services"]
CLAIM, RAY_JOB = yaml.safe_load_all((FOLDER / "kuberay-rayjob.yaml").read_text())
OTHER_CLAIM, RAY_CLUSTER = yaml.safe_load_all((FOLDER / "kuberay-raycluster.yaml").read_text())
CLUSTERS = {"job": RAY_JOB["spec"]["rayClusterSpec"], "cluster": RAY_CLUSTER["spec"]}
PODS = [
    group["template"]["spec"]
    for cluster in CLUSTERS.values()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
]


def parsed(words: list[str]) -> dict[str, Any]:
    """Returns the parameters of a command line as parsed by the program itself, which raises on unknown options."""
    match words:
        case ["oec", name, *rest]:
            command: click.Command = main.commands[name]
        case ["mlflow", "server", *rest]:
            command = mlflow.cli.server
        case ["ray", "start", *rest]:
            from ray.scripts.scripts import start  # it warns, which only a test's filter can silence

            command = start
        case ["ray", "job", "submit", *rest]:
            command = submit
        case _:
            pytest.fail(f"unknown program: {words}")
    with command.make_context(words[0], list(rest)) as context:
        return dict(context.params)


def test_linters_report_nothing() -> None:
    programs = Path(sys.executable).parent
    for check in (
        [programs / "hadolint", FOLDER / "Dockerfile"],
        [programs / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *FOLDER.glob("compose*.yaml")],
    ):
        done = subprocess.run(list(map(str, check)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_versions_match_the_package() -> None:
    declared = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
    pinned = [Requirement(line) for line in (FOLDER / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    for pin in pinned:
        (exact,) = pin.specifier
        assert declared[pin.name].specifier.contains(exact.version)
        assert version(pin.name).partition("+")[0] == exact.version, f"docker/constraints.txt: {pin.name} is outdated"
    assert {"ray", "torch", "mlflow"} <= {pin.name for pin in pinned}
    assert {cluster["rayVersion"] for cluster in CLUSTERS.values()} == {version("ray")}
    images = {service["image"] for service in SERVICES.values()} - {SERVICES["postgres"]["image"]}
    images |= {container["image"] for pod in PODS for container in pod["containers"]}
    assert images == {f"oec-sensitivity:{__version__}"}


def test_base_images_are_exact_versions_that_the_package_runs_on() -> None:
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2
    assert SERVICES["mlflow"]["build"]["args"]["PYTHON_IMAGE"] == python
    exact = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-\w+", python)
    assert exact, f"{python} is not an exact version"
    assert SpecifierSet(PROJECT["requires-python"]).contains(exact[1])
    assert re.fullmatch(r"postgres:\d+\.\d+", SERVICES["postgres"]["image"])


def test_build_arguments_match_the_dockerfile() -> None:
    declared = dict(re.findall(r'^ARG (\w+)="?([^"\n]*)"?$', DOCKERFILE, re.MULTILINE))
    assert SERVICES["mlflow"]["build"]["args"] == declared


def test_the_build_context_has_exactly_what_the_image_needs() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    packages = {pattern.rstrip("*") for pattern in ("search_spaces*", "trainers*", "service*", "dashboards*")}
    files = {
        "pyproject.toml",
        "oec_sensitivity.py",
        "requirements.lock",
        "docker/constraints.txt",
        "docker/entrypoint.sh",
        PROJECT["readme"],
    }
    assert kept == packages | files | set(PROJECT["license-files"])


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "postgres"])
def test_commands_name_options_that_exist(service: str) -> None:
    parsed(SERVICES[service]["command"])


def test_the_jobs_run_a_shipped_study() -> None:
    entrypoint = parsed(SERVICES["demo"]["command"])["entrypoint"]
    assert parsed(list(entrypoint))["study"] in shipped()
    assert RAY_JOB["spec"]["entrypoint"].split() == list(entrypoint)


def test_services_find_each_other() -> None:
    head, worker, demo = (parsed(SERVICES[name]["command"]) for name in ("ray-head", "ray-worker", "demo"))
    server = parsed(SERVICES["mlflow"]["command"])
    assert worker["address"] == f"ray-head:{head['port']}"
    assert demo["address"] == f"http://ray-head:{head['dashboard_port']}"
    assert parsed(SERVICES["serve"]["command"])["cluster"] == demo["address"]
    store = urlsplit(server["backend_store_uri"])
    postgres = SERVICES["postgres"]["environment"]
    assert (store.hostname, store.port) == ("postgres", 5432)
    assert (store.username, store.path) == (postgres["POSTGRES_USER"], f"/{postgres['POSTGRES_DB']}")
    assert f"database_uri = {server['backend_store_uri']}\n" in COMPOSE["configs"]["mlflow-auth"]["content"]
    assert SERVICES["mlflow"]["environment"]["PGPASSWORD_FILE"] == postgres["POSTGRES_PASSWORD_FILE"]
    for name in ("ray-head", "ray-worker", "serve", "demo"):
        tracking = urlsplit(SERVICES[name]["environment"]["MLFLOW_TRACKING_URI"])
        assert (tracking.hostname, tracking.port) == ("mlflow", server["port"])
        assert tracking.netloc in server["allowed_hosts"].split(",")
        assert f"home:{SERVICES[name]['environment']['OEC_HOME']}" in SERVICES[name]["volumes"]


def test_ports_are_published_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    server, head = parsed(SERVICES["mlflow"]["command"]), parsed(SERVICES["ray-head"]["command"])
    service = parsed(SERVICES["serve"]["command"])
    for name, port in (("mlflow", server["port"]), ("ray-head", head["dashboard_port"]), ("serve", service["port"])):
        assert published.pop(name) == [f"127.0.0.1:{port}:{port}"]
    assert not published


def test_services_that_others_wait_for_have_a_health_check() -> None:
    awaited = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
    assert awaited == {"postgres", "mlflow", "ray-head", "ray-worker"}
    for service in SERVICES.values():
        assert all(wait["condition"] == "service_healthy" for wait in service.get("depends_on", {}).values())
    assert all("healthcheck" in SERVICES[name] for name in awaited)


def test_secrets_are_files_that_are_in_no_image_and_no_commit(tmp_path: Path) -> None:
    for name, service in SERVICES.items():
        asked = {value for value in service["environment"].values() if value.startswith("/run/secrets/")}
        assert asked == {f"/run/secrets/{secret}" for secret in service["secrets"]}, name
        passwords = [key for key in service["environment"] if re.search("PASSWORD|TOKEN|KEY", key)]
        assert all(key.endswith(("_FILE", "_PATH")) for key in passwords), name
    subprocess.run([shutil.copy(FOLDER / "secrets.sh", tmp_path)], check=True)
    made = {secret["file"]: (tmp_path / secret["file"]).read_text() for secret in COMPOSE["secrets"].values()}
    assert len({*made.values()}) == len(made)
    assert all(re.fullmatch(r"[0-9a-f]{64}", secret) for secret in made.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0, "other users may enter the folder"
    subprocess.run([tmp_path / "secrets.sh"], check=True)
    assert made == {file: (tmp_path / file).read_text() for file in made}, "a second run replaced the secrets"
    assert "docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_entry_point_reads_secrets_and_nothing_else(tmp_path: Path) -> None:
    secret = tmp_path / "secrets" / "a"
    secret.parent.mkdir()
    secret.write_text("it's $HOME and `two`\nlines")
    environment = {"PATH": os.environ["PATH"], "A_PASSWORD_FILE": str(secret), "SSL_CERT_FILE": "/etc/certificates"}
    command = [FOLDER / "entrypoint.sh", "python3", "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["A_PASSWORD"] == secret.read_text()
    assert seen["SSL_CERT_FILE"] == "/etc/certificates"
    assert "A_PASSWORD_FILE" not in seen
    missing = subprocess.run(command, env=environment | {"A_PASSWORD_FILE": f"{secret}-not"}, capture_output=True)
    assert missing.returncode, "a service starts although its secret is missing"


@pytest.mark.parametrize("cached", [True, False])
def test_the_image_has_gpt2s_ranks_or_is_not_built(cached: bool, gpt2_cache: Path, tmp_path: Path) -> None:
    """Runs the actual step of the Dockerfile, with another folder in place of the image's."""
    (step,) = re.findall(r"^RUN (mkdir /opt/tiktoken (?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    folder = tmp_path / "tiktoken"
    step = step.replace("\\\n", "").replace("/opt/tiktoken", str(folder)).removeprefix(f"mkdir {folder} && ")
    assert compose_file.image_variables()["TIKTOKEN_CACHE_DIR"] == "/opt/tiktoken"
    shutil.copytree(gpt2_cache, folder) if cached else folder.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    offline = {"PATH": path, "https_proxy": "http://127.0.0.1:9"}
    for asked, works in (("download", cached), ("none", True)):
        done = subprocess.run(step, shell=True, env=offline | {"GPT2_RANKS": asked}, capture_output=True, text=True)
        assert (done.returncode == 0) == works, done.stderr


def test_nodes_require_a_token_and_nothing_runs_as_root() -> None:
    assert compose_file.image_variables()["RAY_AUTH_MODE"] == ENVIRONMENT["RAY_AUTH_MODE"] == "token"
    assert all(cluster["authOptions"] == {"mode": "token"} for cluster in CLUSTERS.values())
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert f"--uid {user}" in DOCKERFILE
    assert {pod["securityContext"]["runAsUser"] for pod in PODS} == {int(user)}


def test_the_pods_share_a_home() -> None:
    home = compose_file.image_variables()["OEC_HOME"]
    assert OTHER_CLAIM == CLAIM
    for pod in PODS:
        (container,) = pod["containers"]
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": home}]
        assert {"name": "OEC_HOME", "value": home} in container["env"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]

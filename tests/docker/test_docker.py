"""What can be said of docker/ without an engine: its files are valid, and agree with each other and the package."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import mlflow.cli
import pytest
import yaml
from packaging.requirements import Requirement
from ray.dashboard.modules.job.cli import submit

from search_spaces.study import shipped
from service.cli import main
from service.cluster import ENVIRONMENT
from tests.docker import compose

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")

ROOT = Path(__file__).parents[2]
DOCKERFILE = (compose.FOLDER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVICES = compose.load(RAY_AUTH_TOKEN="t", POSTGRES_PASSWORD="p")["services"]
CLAIM, RAY_JOB = yaml.safe_load_all((compose.FOLDER / "kuberay-rayjob.yaml").read_text())
CLUSTER = RAY_JOB["spec"]["rayClusterSpec"]
PODS = [group["template"]["spec"] for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"])]


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters of a command line as the program itself reads them; it raises at an option that it lacks."""
    match words:
        case ["oec", name, *rest]:
            command: click.Command = main.commands[name]
        case ["mlflow", "server", *rest]:
            command = mlflow.cli.server
        case ["ray", "start", *rest]:
            from ray.scripts.scripts import start  # its import warns, which only a test's filter can keep quiet

            command = start
        case ["ray", "job", "submit", *rest]:
            command = submit
        case _:
            pytest.fail(f"a command of no known program: {words}")
    with command.make_context(words[0], list(rest)) as context:
        return dict(context.params)


def test_linters_have_nothing_to_say() -> None:
    programs = Path(sys.executable).parent
    for check in (
        [programs / "hadolint", compose.FOLDER / "Dockerfile"],
        [programs / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose.FOLDER / "compose.yaml"],
    ):
        done = subprocess.run(list(map(str, check)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_versions_are_those_of_the_package() -> None:
    declared = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
    pinned = [
        Requirement(line) for line in (compose.FOLDER / "constraints.txt").read_text().splitlines() if line[0] != "#"
    ]
    for pin in pinned:
        (exact,) = pin.specifier
        assert declared[pin.name].specifier.contains(exact.version)
        assert version(pin.name).partition("+")[0] == exact.version, f"docker/constraints.txt: {pin.name} moved on"
    assert {"ray", "torch", "mlflow"} <= {pin.name for pin in pinned}
    assert CLUSTER["rayVersion"] == version("ray")
    images = {service["image"] for service in SERVICES.values()} - {"postgres:17"}
    images |= {container["image"] for pod in PODS for container in pod["containers"]}
    assert images == {f"oec-sensitivity:{PROJECT['version']}"}
    pythons = re.findall(r"^FROM python:(\S+)-slim", DOCKERFILE, re.MULTILINE)
    assert pythons == [pythons[0]] * 2
    assert PROJECT["requires-python"] == f">={pythons[0]}"


def test_the_image_is_made_of_what_the_build_context_holds() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    packages = {pattern.rstrip("*") for pattern in ("search_spaces*", "trainers*", "service*", "dashboards*")}
    files = {"pyproject.toml", "requirements.lock", "docker/constraints.txt", PROJECT["readme"]}
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
    store = urlsplit(server["backend_store_uri"])
    postgres = SERVICES["postgres"]["environment"]
    assert (store.hostname, store.port) == ("postgres", 5432)
    assert (store.username, store.path) == (postgres["POSTGRES_USER"], f"/{postgres['POSTGRES_DB']}")
    assert SERVICES["mlflow"]["environment"]["PGPASSWORD"] == postgres["POSTGRES_PASSWORD"]
    for name in ("ray-head", "ray-worker", "demo"):
        tracking = urlsplit(SERVICES[name]["environment"]["MLFLOW_TRACKING_URI"])
        assert (tracking.hostname, tracking.port) == ("mlflow", server["port"])
        assert tracking.netloc in server["allowed_hosts"].split(",")
        assert f"home:{SERVICES[name]['environment']['OEC_HOME']}" in SERVICES[name]["volumes"]


def test_only_loopback_reaches_what_is_published_and_no_other_port_is() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    server, head = parsed(SERVICES["mlflow"]["command"]), parsed(SERVICES["ray-head"]["command"])
    for name, port in (("mlflow", server["port"]), ("ray-head", head["dashboard_port"])):
        assert published.pop(name) == [f"127.0.0.1:{port}:{port}"]
    assert not published


def test_what_is_waited_for_has_a_health_check() -> None:
    awaited = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
    assert awaited == {"postgres", "mlflow", "ray-head", "ray-worker"}
    for service in SERVICES.values():
        assert all(wait["condition"] == "service_healthy" for wait in service.get("depends_on", {}).values())
    assert all("healthcheck" in SERVICES[name] for name in awaited)


@pytest.mark.parametrize("missing", ["RAY_AUTH_TOKEN", "POSTGRES_PASSWORD"])
def test_secrets_have_no_default(missing: str) -> None:
    secrets = {"RAY_AUTH_TOKEN": "t", "POSTGRES_PASSWORD": "p"}
    del secrets[missing]
    with pytest.raises(KeyError, match=missing):
        compose.load(**secrets)
    assert missing not in DOCKERFILE
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_nodes_ask_for_a_token_and_nothing_is_root() -> None:
    assert compose.image_variables()["RAY_AUTH_MODE"] == ENVIRONMENT["RAY_AUTH_MODE"] == "token"
    assert CLUSTER["authOptions"] == {"mode": "token"}
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert f"--uid {user}" in DOCKERFILE
    assert {pod["securityContext"]["runAsUser"] for pod in PODS} == {int(user)}


def test_the_pods_share_a_home() -> None:
    home = compose.image_variables()["OEC_HOME"]
    for pod in PODS:
        (container,) = pod["containers"]
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": home}]
        assert {"name": "OEC_HOME", "value": home} in container["env"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]

"""How many cells fit into a cluster, and what is said when none does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InvalidInput
from search_spaces.study import ResourceSpec
from service import cluster
from tests.service.oec import oec

small = st.integers(min_value=1, max_value=16)


@given(small, small, st.integers(min_value=0, max_value=1), small, st.integers(0, 64), st.integers(0, 64))
def test_as_many_as_fit_and_not_one_more(workers: int, cpus: int, gpus: int, limit: int, CPU: int, GPU: int) -> None:
    resources = ResourceSpec(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus, concurrency=limit)
    try:
        cells = cluster.concurrency(resources, {"CPU": CPU, "GPU": GPU})
    except InvalidInput:
        assert workers * cpus > CPU or workers * gpus > GPU
        return
    assert 1 <= cells <= limit
    assert cells * workers * cpus <= CPU
    assert cells * workers * gpus <= GPU
    more = cells + 1
    assert more > limit or more * workers * cpus > CPU or more * workers * gpus > GPU


@pytest.mark.parametrize(
    ("resources", "available", "message"),
    [
        ({"workers": 8}, {"CPU": 4}, "8 workers x 1 CPU = 8 CPU, of 4; use at most 4 workers"),
        ({"workers": 3, "cpus_per_worker": 2}, {"CPU": 4}, "3 workers x 2 CPU = 6 CPU, of 4; use at most 2 workers"),
        ({"workers": 2, "gpus_per_worker": 1}, {"CPU": 4}, "2 workers x 1 GPU = 2 GPU, of 0; use a cluster with GPUs"),
    ],
)
def test_what_does_not_fit_shows_the_arithmetic(
    resources: dict[str, int], available: dict[str, float], message: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        cluster.concurrency(ResourceSpec(**resources), available)
    assert message in str(refused.value)


def test_the_address_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster.address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster.address(None) == "10.0.0.1:6379"
    assert cluster.address("127.0.0.1:1") == "127.0.0.1:1"


@pytest.mark.parametrize("before", [None, "a token that Ray made"])
def test_rays_token_is_this_users_alone(tmp_path, monkeypatch, before):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    if before:
        path.parent.mkdir()
        path.write_text(before)
        path.chmod(0o644)
    cluster.private_token()
    token = path.read_text()
    assert token == before if before else len(token) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    cluster.private_token()
    assert path.read_text() == token, "one token for all that this user starts"


def test_a_token_from_the_environment_makes_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    cluster.private_token()
    assert not (tmp_path / ".ray").exists()


@pytest.mark.parametrize("text", ["64", "CPU=", "CPU=x", "CPU=-4", "TPU=4", "CPU=4;GPU=1", "CPU=4,", "localhost"])
def test_what_is_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        cluster.resources_of(text)
    assert refused.value.field == "--cluster"
    assert "CPU=64,GPU=8" in str(refused.value)


@pytest.mark.parametrize(
    ("resources", "available", "cells", "expected"),
    [
        ({}, "CPU=64", 49, (49, "the number of cells")),
        ({}, "CPU=8", 49, (8, "CPU")),
        ({"workers": 3}, "CPU=8", 49, (2, "CPU")),
        ({"concurrency": 5}, "CPU=8", 49, (5, "resources.concurrency")),
        ({"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 4}, "CPU=64, GPU=4", 49, (2, "GPU")),
        ({"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 4}, "CPU=16,GPU=64", 49, (2, "CPU")),
    ],
)
def test_what_binds(resources: dict[str, int], available: str, cells: int, expected: tuple[int, str]) -> None:
    assert cluster.binding(ResourceSpec(**resources), cluster.resources_of(available), cells) == expected


def test_a_plan_for_a_cluster(tmp_path: Path) -> None:
    shown = oec("plan", "demo", "--cluster", "CPU=16", home=tmp_path).stdout.splitlines()[-1]
    assert shown.startswith("on 16 CPU: 16 cells at once, 16 workers, bound by CPU; about ")
    assert shown.endswith("core-hours")
    refused = oec("plan", "demo", "--cluster", "GPU=1", home=tmp_path)
    assert refused.returncode == 2
    assert "1 workers x 1 CPU = 1 CPU, of 0" in refused.stderr

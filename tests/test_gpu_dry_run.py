"""Runs the GPU tests and benchmarks on the CPU, so that on a machine with a GPU only the GPU can make them fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_prints_one_line() -> None:
    done = run("tests.cuda")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "no CUDA device" in done.stdout


@pytest.mark.slow
def test_the_tests_run_on_a_cpu() -> None:
    done = run("tests.cuda", OEC_TEST_DEVICE="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/cuda: passed" in done.stdout


@pytest.mark.slow
def test_the_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert not found["failures"], done.stdout
    parts = {row["part"] for row in found["rows"]}
    assert parts == {"step", "small", "head", "methods", "cells", "evaluation", "big", "exact"}
    assert all(row["ms"] > 0 for row in found["rows"])


def test_a_part_without_time_is_reported_and_an_unknown_part_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("benchmarks.gpu", "--device", "cpu", "--tiny", "--seconds", "0", "--out", str(out), "step", "exact")
    assert done.returncode == 0, done.stderr
    assert "step: not begun" in done.stdout
    assert run("benchmarks.gpu", "--device", "cpu", "nothing").returncode == 2

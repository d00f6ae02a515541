"""Tests the code for accelerators without one: shapes, dtypes and devices of steps with fake tensors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "without_device"
PYTORCH = Path(torch.__file__).parent


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this build of PyTorch has CUDA: see tests/cuda")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_steps_on_an_accelerator(tmp_path: Path) -> None:
    device, libraries = tmp_path / "device.so", PYTORCH / "lib"
    command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{PYTORCH / 'include'}", str(FOLDER / "device.cpp")]
    command += ["-o", str(device), f"-L{libraries}", "-lc10", "-ltorch_cpu"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    steps = [sys.executable, str(FOLDER / "steps.py"), str(device), str(libraries)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(steps, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout == "16 kinds of steps, 10 graphs\n"

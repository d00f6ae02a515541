"""Runs the GPU tests: ``python -m tests.cuda``, or ``python -m tests.cuda ray`` for the tests with Ray.

They need PyTorch, numpy, pydantic, PyYAML and pytest. All arguments except ``ray`` are passed to pytest. The modules
run concurrently, each in its own process, because most of their time is compilation on the CPUs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import torch

from tests.cuda.cells import DEVICE, DRY

FOLDER = Path(__file__).parent
NOTHING = int(pytest.ExitCode.NO_TESTS_COLLECTED)


def main(arguments: list[str]) -> int:
    if not DRY and not torch.cuda.is_available():
        print(f"tests/cuda: PyTorch {torch.__version__} finds no CUDA device here; nothing was tested.")
        return 0
    started = time.perf_counter()
    name = "processor, a dry run" if DRY else torch.cuda.get_device_name(DEVICE)
    print(f"tests/cuda: {name}, PyTorch {torch.__version__}", flush=True)
    ray = "ray" in arguments
    chosen = ["-m", "ray" if ray else "not ray", *(one for one in arguments if one != "ray")]
    options = ["-q", "--no-header", "--durations", "5", "-p", "no:cacheprovider", *chosen]
    modules = sorted(FOLDER.glob("test_*.py"), key=lambda path: (path.stem == "test_ray") != ray)
    running = []
    for module in modules:
        out = TemporaryFile("w+")  # noqa: SIM115  # read when the process has ended
        command = [sys.executable, "-m", "pytest", str(module), *options]
        running.append((module, out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)))
        if DRY:
            running[-1][2].wait()  # without a GPU, the tests of one module already use all cores
    codes = []
    for module, out, process in running:
        codes.append(process.wait())
        out.seek(0)
        if codes[-1] != NOTHING:
            print(f"== {module.stem}, rc {codes[-1]}\n{out.read()}", flush=True)
    failed = [module.stem for (module, _, _), code in zip(running, codes, strict=True) if code not in (0, NOTHING)]
    print(f"tests/cuda: {', '.join(failed) + ' FAILED' if failed else 'passed'}, {time.perf_counter() - started:.0f} s")
    return 1 if failed or set(codes) == {NOTHING} else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

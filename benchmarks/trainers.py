"""The overhead per cell of a command and of a Python object beyond their training, measured in one run.

    python -m benchmarks.trainers [--cells 20]

bare      the command alone, started by ``subprocess.run``, one run after another
command   the same command as the trainer of a study: the median time from the end of a cell to the end of the next
python    the same training as a Python object in a warm worker: the same time

Cells run one at a time. All start with the same niceness, which Ray otherwise raises for its workers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

SCRIPT = """
import json, sys, time
for step in range(3):
    with open(sys.argv[1] + "/log.jsonl", "a") as log:
        print(json.dumps({"step": step, "val_loss": 3.0 - step * float(sys.argv[2])}), file=log)
    time.sleep(0.1)
"""
TRIAL = """
import time

class Trial:
    def setup(self, context):
        pass

    def train(self, cell, report, checkpoint):
        for step in range(3):
            report(step, val_loss=3.0 - step * cell.lr)
            time.sleep(0.1)
"""
TRAINING_S = 0.3
"""Seconds that the training itself takes, in both."""
MAX_COMMAND_S, MAX_PYTHON_S = 0.5, 0.2
"""What a cell may cost beyond its training."""


def bare(cells: int, folder: Path) -> list[float]:
    """Returns the seconds of each start of the command."""
    seconds = []
    for i in range(cells):
        out = folder / f"bare-{i}"
        out.mkdir()
        began = time.perf_counter()
        command = [sys.executable, "-S", "train.py", str(out), "0.1"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return seconds


def as_cells(kind: str, cells: int, folder: Path) -> list[float]:
    """Runs a study with ``oec run``'s code. Returns the seconds from the end of each cell to the end of the next."""
    from rich.console import Console

    from search_spaces.study import Study
    from service.home.location import open_home
    from service.sweep.run import run_study

    command = {"command": f"{sys.executable} -S train.py {{folder}} {{lr}}", "metrics": {"file": "{folder}/log.jsonl"}}
    fields = {
        "name": f"bench-{kind}",
        "trainer": {"directory": str(folder), **(command if kind == "command" else {"python": "bench_trial:Trial"})},
        "lrs": [0.001 * (1 + i) for i in range(cells)],
        "resources": {"concurrency": 1},
    }
    study, home = Study.validate_fields(fields), open_home(folder / f"home-{kind}")
    crashed = run_study(study, home, address=None, retry_crashed=False, console=Console(stderr=True))
    assert not crashed, "a cell crashed"
    lines = [json.loads(line) for line in home.ledger(study.name).read_text().splitlines()]
    ends = [datetime.fromisoformat(line["at"]).timestamp() for line in lines if line["event"] == "finished"]
    return [after - before for before, after in pairwise(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        kind, folder = arguments.only
        print(json.dumps(as_cells(kind, arguments.cells, Path(folder))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.py").write_text(SCRIPT)
        (folder / "bench_trial.py").write_text(TRIAL)
        alone = median(bare(arguments.cells, folder))
        found = {kind: median(in_process(kind, arguments.cells, folder)) for kind in ("command", "python")}
        alone = min(alone, median(bare_again(arguments.cells, folder)))
    print(f"bare command: {alone:.3f} s, of which {TRAINING_S} s are training")
    for kind, limit, base in (("command", MAX_COMMAND_S, alone), ("python", MAX_PYTHON_S, TRAINING_S)):
        added = found[kind] - base
        print(f"{kind}: {found[kind]:.3f} s a cell, {added:.3f} s beyond {base:.3f} s; at most {limit} s are wanted")


def bare_again(cells: int, folder: Path) -> list[float]:
    """Measures the command again after the studies, because the load of the machine may have changed."""
    again = folder / "again"
    again.mkdir()
    (again / "train.py").write_text(SCRIPT)
    return bare(cells, again)


def in_process(kind: str, cells: int, folder: Path) -> list[float]:
    """Runs a study in its own process, with a new Ray cluster."""
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "benchmarks.trainers", "--cells", str(cells), "--only", kind, str(folder)]
    print(f"running: {kind}", file=sys.stderr)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return [float(seconds) for seconds in json.loads(done.stdout.splitlines()[-1])]


if __name__ == "__main__":
    main()

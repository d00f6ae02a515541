"""The examples: short studies of unmodified training scripts, and what ``oec init`` finds out about each of them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from search_spaces.plan import Plan
from search_spaces.study import Study
from tests.service.oec import environment, invoked, oec
from tests.trainers.scripts import Reported, context
from trainers.command.trial import CommandTrial
from trainers.protocol import Checkpoint
from trainers.python_trial import PythonTrial

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "chargpt": ("train.py", ()),
    "huggingface": ("train.py", ("transformers", "accelerate")),
    "lightning": ("train.py", ("lightning",)),
    "optax": ("train.py", ("jax", "optax", "absl")),
    "sgd": ("digits.py", ()),
}
"""The script of each example, and the libraries that it needs in addition to ours."""
MAX_LINES = 15
SEARCH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
"""A PATH that starts with this environment's programs, as if it were activated."""


def require(name: str) -> None:
    for library in SCRIPTS[name][1]:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")


def test_every_example_is_tested() -> None:
    assert sorted(path.parent.name for path in EXAMPLES.glob("*/study.yaml")) == sorted(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_studies_are_short_and_valid(name: str) -> None:
    path = EXAMPLES / name / "study.yaml"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    study = Study.load(str(path))
    assert study.name == name
    assert study.trainer is not None
    assert study.trainer.digest(study.resources.workers)


@pytest.mark.parametrize("name", SCRIPTS)
def test_init_finds_what_the_study_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds code, metrics, resume option, and every option of the command except those of factors."""
    monkeypatch.chdir(EXAMPLES / name)
    script = SCRIPTS[name][0]
    done = invoked("init", script, "--name", name, "--out", str(tmp_path / "study.yaml"), home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    ours = yaml.safe_load((EXAMPLES / name / "study.yaml").read_text(encoding="utf-8"))["trainer"]
    found = yaml.safe_load((tmp_path / "study.yaml").read_text(encoding="utf-8"))["trainer"]
    assert found["identity"] == ours["identity"]
    assert found.get("python") == ours.get("python")
    assert found.get("resume") == ours.get("resume")
    for key, value in ours.get("metrics", {}).items():
        if key != "others":
            assert found["metrics"][key] == value
    assert set(found.get("command", "").split()) <= set(ours.get("command", "").split())


def train(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """Starts the training of ``chargpt`` with one core per rank."""
    script = [*(launcher or (sys.executable,)), str(EXAMPLES / "chargpt" / "train.py")]
    options = ["--out_dir", str(folder), "--max_iters", "40", "--eval_interval", "10", "--eval_iters", "2", *words]
    return subprocess.Popen([*script, *options], env=environment(folder, OMP_NUM_THREADS="1"))


def rows(folder: Path) -> list[dict[str, float]]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_chargpt_resumes_bit_for_bit_and_trains_on_two_ranks(tmp_path: Path) -> None:
    whole, killed, ranks = (tmp_path / name for name in ("whole", "killed", "ranks"))
    assert train(whole).wait() == 0
    process = train(killed)
    deadline = time.monotonic() + 120
    while not any(row["iter"] == 10 for row in rows(killed)):
        assert time.monotonic() < deadline, "no second evaluation within two minutes"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert max(row["iter"] for row in rows(killed)) < 40, "the run ended before it could be killed"
    assert train(killed, "--resume").wait() == 0
    assert rows(killed)[-1]["val/loss"] == rows(whole)[-1]["val/loss"]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert train(ranks, launcher=torchrun).wait() == 0
    np.testing.assert_allclose(rows(ranks)[-1]["val/loss"], rows(whole)[-1]["val/loss"], rtol=1e-4)
    assert rows(whole)[-1]["val/loss"] < rows(whole)[0]["val/loss"] - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_of_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains one cell as a Ray Train worker does, with real processes, metrics and a result."""
    require(name)
    monkeypatch.setenv("PATH", SEARCH)
    study = Study.load(str(EXAMPLES / name / "study.yaml"))
    assert study.trainer is not None
    trial = CommandTrial(study.trainer) if study.trainer.kind == "command" else PythonTrial(study.trainer)
    trial.setup(context(tmp_path))
    cell = Plan(study, study.trainer.digest(study.resources.workers)).cells[0]
    report = Reported()
    result = trial.train(cell, report, Checkpoint(folder=tmp_path / "cell"))
    assert result.state == "finished", result.reason
    assert result.val_loss is not None
    assert result.l_init is not None
    assert result.val_loss < result.l_init - 0.2
    assert len(report.rows) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chargpt", "sgd"])
def test_a_study_of_it_runs(name: str, tmp_path: Path) -> None:
    """Runs two learning rates of the study through Ray with the real commands."""
    home = tmp_path / "home"
    fields = yaml.safe_load((EXAMPLES / name / "study.yaml").read_text(encoding="utf-8"))
    fields |= {"lrs": fields["lrs"][:2], "seeds": 1, "factors": {key: [v[0]] for key, v in fields["factors"].items()}}
    fields["trainer"]["directory"] = str(EXAMPLES / name)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    done = oec("run", path, home=home, PATH=SEARCH)
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = home / "studies" / name / "ledger.jsonl"
    assert ledger.read_text().count('"event":"finished"') == 2, ledger.read_text()

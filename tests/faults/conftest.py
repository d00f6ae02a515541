"""The study that faults are put into, what comes of it without one, and the account of which faults were survived."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from _pytest.terminal import TerminalReporter

from search_spaces.study import Study
from tests.faults.invariants import losses
from tests.faults.running import NAME
from tests.service.oec import oec


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells of two DDP workers, one after the other, some seconds each."""
    training = {**Study.load("smoke").training.model_dump(mode="json"), "steps": 900}
    changes = {"name": NAME, "methods": ["baseline"], "lrs": [1e-3, 2e-3], "training": training}
    changes |= {"intervals": {"evaluate": 100, "checkpoint": 50}, "resources": {"workers": 2}}
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(Study.load("smoke").to_yaml()), "refine": 0, **changes}))
    return path


@pytest.fixture(scope="session")
def undisturbed(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float | None]:
    home = tmp_path_factory.mktemp("undisturbed")
    done = oec("run", study, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Trial" not in done.stdout, "Ray Tune prints into the user's log"
    return losses(home, NAME)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Hand the faults of a test on to its report: ``@pytest.mark.fault("what", times=3)``."""
    if call.when == "call":
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("fault", (mark.args[0], mark.kwargs.get("times", 1))))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """A line for every kind of fault: how often it was put in, how often everything held after it."""
    injected: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties if report.when == "call" else ():
                if name == "fault":
                    injected[value[0]] += value[1]
                    survived[value[0]] += value[1] * (outcome == "passed")
    if injected:
        terminalreporter.section("faults: injected, survived")
        for what in sorted(injected):
            terminalreporter.line(f"{injected[what]:5} {survived[what]:5}  {what}")

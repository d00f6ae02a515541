"""Shared by all tests: the environment in which ``oec`` runs Ray, set before any test module imports Ray; a home with a
trained study for tests that only read it; and a summary of injected faults after the last test."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.terminal import TerminalReporter

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

from service.cluster.connection import configure_ray

configure_ray()
# If a script runs pytest in the background, pytest ignores Ctrl-C, and the processes that tests interrupt inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
with suppress(ModuleNotFoundError):  # tests/cuda also runs on machines without most test dependencies
    from hypothesis import settings

    settings.register_profile("oec", deadline=None)  # an example's duration depends on how busy the machine is
    settings.load_profile("oec")


@pytest.fixture(scope="session")
def gpt2_cache(request: pytest.FixtureRequest) -> Path:
    """Returns a TIKTOKEN_CACHE_DIR with GPT-2's ranks. It is in pytest's cache, so that later sessions reuse it."""
    from tests import gpt2

    return gpt2.fill(Path(request.config.cache.mkdir("gpt2")))


ONE_CELL = """\
name: one
scales: [tiny]
data: {source: text, path: TEXT, tokenizer: bytes}
methods: [baseline]
lrs: [1.0e-2]
training: {steps: 20, batch_size: 4, sequence_length: 32, warmup_steps: 2, precision: float32, eval_sequences: 4}
"""


def write(folder: Path, name: str, **changes: object) -> Path:
    """Writes a study like ``smoke``: three curves with two learning rates, trained by two DDP workers. One cell
    diverges."""
    import yaml

    from search_spaces.study import Study

    content = yaml.safe_load(Study.load("smoke").to_yaml()) | {"name": name, "lrs": [1e-3, 30.0]} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the study ``first``, with one Optuna trial per method and one bisection per curve, and returns its
    path."""
    return write(tmp_path_factory.mktemp("studies"), "first", refine={"trials": 1, "edge": 200})


def another_project(folder: Path) -> Path:
    """Writes a project whose packages have the names of ours and raise an error on import, with the study ``one`` of a
    single short cell. Returns its folder."""
    for name in ("service", "trainers", "search_spaces", "dashboards"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('the wrong package was imported')\n")
    text = folder / "text.txt"
    text.write_text("All work and no play makes Jack a dull boy.\n" * 200)
    (folder / "one.yaml").write_text(ONE_CELL.replace("TEXT", str(text)))
    return folder


@pytest.fixture(scope="session")
def trained(first: Path) -> Path:
    """Returns a home in which the study ``first`` is complete.

    It was started in the folder of ``another_project``, which is on the import path, too.
    """
    from tests.service.oec import oec

    home, project = first.with_name("home"), another_project(first.with_name("project"))
    done = oec("run", first, home=home, cwd=project, PYTHONPATH=str(project))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Learning-rate sensitivity: first" in done.stdout
    return home


SHARED = {
    "tests/docs/": "trained",
    "tests/service/sweep/test_run.py": "trained",
    "tests/service/sweep/embedded/": "embedded",
}
"""Groups of test modules that one process runs, because they share a fixture that is slow to set up, by path prefix."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    from xdist.scheduler import LoadFileScheduling

    class Modules(LoadFileScheduling):
        """Sends all tests of a module, or of a group in ``SHARED``, to the same process."""

        def _split_scope(self, nodeid: str) -> str:
            groups = (group for prefix, group in SHARED.items() if nodeid.startswith(prefix))
            return next(groups, super()._split_scope(nodeid))

    return Modules(config, log)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Copies the faults of a test, ``@pytest.mark.fault("name", times=3)``, to its report."""
    if call.when == "call":
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("fault", (mark.args[0], mark.kwargs.get("times", 1))))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Prints how often each kind of fault was injected, and how often its test passed."""
    injected: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, value in report.user_properties if report.when == "call" else ():
                if key == "fault":
                    injected[value[0]] += value[1]
                    survived[value[0]] += value[1] * (outcome == "passed")
    if injected:
        terminalreporter.section("faults: injected, survived")
        for name in sorted(injected):
            terminalreporter.line(f"{injected[name]:5} {survived[name]:5}  {name}")

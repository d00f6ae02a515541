"""Before any test module imports Ray: the environment in which the engine runs it. A study that was run to its end, for
all that look at what it left. After all tests: the account of the faults that were put in."""

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
# What a script starts in the background ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
with suppress(ModuleNotFoundError):  # tests/cuda runs on machines without most of what other tests need
    from hypothesis import settings

    settings.register_profile("oec", deadline=None)  # how long an example takes says how busy the machine is
    settings.load_profile("oec")


@pytest.fixture(scope="session")
def gpt2_cache(request: pytest.FixtureRequest) -> Path:
    """A TIKTOKEN_CACHE_DIR with GPT-2's ranks, kept with pytest's own cache from one session to the next."""
    from tests import gpt2

    return gpt2.fill(Path(request.config.cache.mkdir("gpt2")))


def write(folder: Path, name: str, **changes: object) -> Path:
    """A study like ``smoke``: three curves of two learning rates, 2-worker DDP; one cell diverges."""
    import yaml

    from search_spaces.study import Study

    content = yaml.safe_load(Study.load("smoke").to_yaml()) | {"name": name, "lrs": [1e-3, 30.0]} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of study ``first``, with one refinement a method, and one bisection a curve."""
    return write(tmp_path_factory.mktemp("studies"), "first", refine={"trials": 1, "edge": 200})


@pytest.fixture(scope="session")
def trained(first: Path) -> Path:
    """A home in which study ``first`` has run to its end, started where packages of the names of ours lie."""
    from tests.service.oec import oec

    home, stands = first.with_name("home"), first.with_name("project")
    for name in ("service", "trainers", "search_spaces", "dashboards"):
        (stands / name).mkdir(parents=True)
        (stands / name / "__init__.py").write_text("raise RuntimeError('not the package that was meant')\n")
    done = oec("run", first, home=home, cwd=stands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Learning-rate sensitivity: first" in done.stdout
    return home


SHARED = {
    "tests/docs/": "trained",
    "tests/service/sweep/test_run.py": "trained",
    "tests/service/sweep/embedded/": "embedded",
}
"""By how their tests begin: modules of which one process has all, and what it starts for them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    from xdist.scheduler import LoadFileScheduling

    class Modules(LoadFileScheduling):
        """Where two processes run the tests, one has all of a module, or of those that share what they start."""

        def _split_scope(self, nodeid: str) -> str:
            shares = (what for part, what in SHARED.items() if nodeid.startswith(part))
            return next(shares, super()._split_scope(nodeid))

    return Modules(config, log)


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

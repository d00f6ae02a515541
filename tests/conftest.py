"""Before any test module imports Ray: the environment in which the engine runs it. After all tests: the account of the
faults that were put in."""

import signal
from collections import Counter
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from service import cluster
from tests import gpt2

cluster.configure()
# What a script starts in the background ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("oec", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("oec")


@pytest.fixture(scope="session")
def gpt2_cache(request: pytest.FixtureRequest) -> Path:
    """A TIKTOKEN_CACHE_DIR with GPT-2's ranks, kept with pytest's own cache from one session to the next."""
    return gpt2.fill(Path(request.config.cache.mkdir("gpt2")))


class Modules(LoadFileScheduling):
    """Where two processes run the tests, one has all of a module, or of a folder that shares what it starts."""

    def _split_scope(self, nodeid: str) -> str:
        shares = (folder for folder in ("tests/docs", "tests/service/embedded") if nodeid.startswith(f"{folder}/"))
        return next(shares, super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Modules:
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

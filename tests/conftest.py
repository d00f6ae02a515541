"""Before any test module imports Ray: the environment in which the engine runs it."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

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

"""Readers of external files either read a mutated file or refuse it with a message. For more inputs, see
``benchmarks.fuzz``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from benchmarks.fuzzing import fuzz
from benchmarks.fuzzing.targets import Target, targets

NAMES = (
    "study file", "ledger", "metrics of a cell", "token shard", "manifest of tokens", "checkpoint", "CSV of runs",
)  # fmt: skip
EXAMPLES = 60


@pytest.fixture(scope="module")
def known() -> Iterator[Mapping[str, Target]]:
    with targets() as found:
        assert tuple(found) == NAMES
        yield found


@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_file_is_read_or_refused_with_a_message(known: Mapping[str, Target], name: str) -> None:
    tally = fuzz(known[name], EXAMPLES, start=0)
    assert tally.inputs >= EXAMPLES
    assert tally.refused, "no input was refused: the mutations do not reach the target"


@pytest.mark.parametrize("name", NAMES)
def test_a_valid_file_is_read(known: Mapping[str, Target], name: str) -> None:
    for content in known[name].valid:
        known[name].read(content)

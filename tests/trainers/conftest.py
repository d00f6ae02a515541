from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from trainers.data import Tokens


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return tiny.tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch  # not at the top: the data tests in this folder do not need it

    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"

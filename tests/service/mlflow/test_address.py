"""Addresses of MLflow stores: which are refused, which file they name, and paths with unusual characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.record import CellResult
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.location import open_home
from service.mlflow.address import check_store, in_memory, sqlite_file, sqlite_uri, tracking_uri
from service.mlflow.sink import sync
from service.mlflow.store import create_database

NAMES = (
    "sp ace",
    "ha#sh",
    "qu?est=1&x",
    "per%cent",
    "%41",
    "é漢",
    "q'uo\"te",
    "new\nline",
    "a;b",
    "a@b:c",
    "br[x]*",
    "\\",
    "?",
)
UGLY = "h o#m?e=%41&é漢'\"[x]*\n@:;~$"


@given(st.lists(st.text(min_size=1).filter(lambda name: not {"/", "\0"} & set(name)), min_size=1, max_size=3))
def test_every_path_has_an_address(names: list[str]) -> None:
    path = Path("/", *(name.encode(errors="replace").decode() for name in names))
    assert sqlite_file(sqlite_uri(path)) == path


@pytest.mark.parametrize("name", NAMES)
def test_no_path_is_mistaken_for_another(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    uri = tracking_uri(Home(tmp_path / name))
    assert sqlite_file(uri) == path
    check_store(uri)


def test_the_address_of_a_plain_path_has_not_changed(tmp_path: Path) -> None:
    assert tracking_uri(Home(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_home_with_an_unusual_name_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    home = open_home(tmp_path / UGLY)
    study = Study.load("smoke")
    folder = home.study(study.name) / "report"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("a page")
    with Ledger(home.ledger(study.name), study.name, write=True) as ledger:
        cell = Plan(study, "data").cells[0]
        ledger.plan([cell])
        ledger.start(cell.id)
        ledger.end(cell.id, CellResult(state="finished", val_loss=2.5, l_init=5.5))
        assert sync(tracking_uri(home), home, study, ledger, folder) == 1
    (found,) = MlflowClient(tracking_uri(home)).search_experiments(filter_string="name = 'oec'")
    assert found.artifact_location == (home.path / "mlflow").as_uri()
    assert [path.name for path in (home.path / "mlflow").rglob("report.html")] == ["report.html"]
    assert (home.path / "mlflow.db").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([UGLY, "cwd"])
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_relative_path_is_relative_to_where_the_command_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study changes the working directory while Ray starts."""
    monkeypatch.chdir(tmp_path)
    for uri in ("sqlite:///ml.db", " sqlite:///ml.db\n"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert tracking_uri(Home(tmp_path / "home")) == f"sqlite:///{tmp_path}/ml.db"


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///?cache=shared",
        "sqlite:///:memory:?cache=shared",
        "sqlite+pysqlite://",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:x?mode=memory&uri=true",
    ],
)
def test_an_in_memory_database_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert in_memory(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InvalidInput, match="is a database in memory"):
        check_store(tracking_uri(Home(tmp_path)))


def test_a_sqlite_uri_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow would create a folder named ``file:`` in the working directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="is a URI of SQLite"):
        check_store(f"sqlite:///file:{tmp_path}/ml.db?uri=true")


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "databricks://scope:prefix"])
def test_databricks(uri: str) -> None:
    check_store(uri)
    create_database(uri)
    assert sqlite_file(uri) is None


@pytest.mark.parametrize("uri", ["databrick", "uc", "file:///tmp/mlruns", "mlruns", "/tmp/mlruns", "ftp://x"])
def test_an_address_that_is_not_a_store_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInput, match="is not an MLflow store"):
        check_store(uri)

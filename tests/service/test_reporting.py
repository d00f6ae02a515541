"""Sources of a report and of a comparison, on the real commands in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from dashboards.published import RUNS_CSV
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.home import Home
from service.ledger import Ledger
from tests.service.oec import invoked


def train(home: Path, shift: float) -> None:
    """The study smoke as a home would hold it after a run whose losses are ``shift`` off."""
    study = Study.load("smoke")
    place = Home.open(home)
    place.claim(study)
    with Ledger(place.ledger("smoke"), "smoke", write=True) as ledger:
        cells = Plan(study, "data").cells
        ledger.plan(cells)
        for cell in cells:
            ledger.end(cell.id, "finished", {"val_loss": 3 + shift * cell.lr, "l_init": 9.0, "train_seconds": 1.0})


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    new, old = (tmp_path_factory.mktemp(name) / "home" for name in ("new", "old"))
    train(new, 1.0)
    train(old, 1.5)
    return new, old


def test_two_homes_in_one_report(homes: tuple[Path, Path], tmp_path: Path) -> None:
    new, old = homes
    result = invoked("report", "smoke", f"{old}:smoke", "--out", tmp_path, "--format", "csv", home=new)
    assert result.returncode == 0, result
    assert not list(tmp_path.rglob("*.html"))
    table = pd.read_csv(tmp_path / "tables" / "sensitivity.csv")
    assert set(table["study"]) == {"smoke", f"{old}:smoke"}
    assert len(table) == 2 * len(table[table["study"] == "smoke"])
    assert set(pd.read_csv(tmp_path / "runs.csv")["study"]) == set(table["study"])
    again = invoked(
        "report", tmp_path / "runs.csv", "--only", "sensitivity", "--format", "csv", "--out", tmp_path / "b", home=new
    )
    assert again.returncode == 0, again
    assert len(pd.read_csv(tmp_path / "b" / "tables" / "sensitivity.csv")) == len(table)


def test_a_study_beside_a_foreign_csv(homes: tuple[Path, Path], tmp_path: Path) -> None:
    csv = tmp_path / "theirs.csv"
    csv.write_text("rate,loss\n0.1,3\n0.2,4\n")
    columns = [
        f"--column={pair}" for pair in ("lr=rate", "val_loss=loss", "scale==tiny", "method==z", "gamma==1", "seed==1")
    ]
    result = invoked("report", "smoke", csv, *columns, "--format", "html", "--out", tmp_path / "out", home=homes[0])
    assert result.returncode == 0, result
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>smoke and theirs</h1>" in page
    names = json.loads(re.search(r'id="panels">(.*?)</script>', page)[1])["Final loss over learning rate"]  # type: ignore[index]
    assert "theirs: z (gamma=1)" in json.dumps(names["tiny"]["spec"])


def test_diff_of_two_homes(homes: tuple[Path, Path]) -> None:
    new, old = homes
    result = invoked("diff", f"{old}:smoke", "smoke", home=new)
    assert result.returncode == 0, result
    assert "best loss" in result.stdout
    assert "Noise unknown" in result.stdout
    same = invoked("diff", "smoke", "smoke", home=new)
    assert same.returncode == 0, same
    assert same.stdout.startswith("Equal: ")
    other = invoked("diff", "smoke", RUNS_CSV, home=new)
    assert other.returncode == 0, other
    assert "Only in oec_published_runs: 16M baseline" in other.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "{old}:nowhere"), "is no study of another home; studies in"),
        (("report", "smoke", "smoke"), "is given twice"),
        (("report", "smoke", "--format", "gif"), "--format: 'gif' is no format; choose from html, png"),
        (("report", "smoke", "--only", "los"), "--only: 'los' matches nothing"),
        (("report", "smoke", "--column", "lr=x"), "columns are known"),
        (("report", "smoke", "{old}:smoke", "--column", "lr=x"), "columns are known"),
        (("report", RUNS_CSV, "--column", "rate=lr"), "'rate' is no column of ours"),
        (("diff", "smoke", "nowhere"), "'nowhere' is neither a study of this home"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], message: str, homes: tuple[Path, Path], tmp_path: Path) -> None:
    new, old = homes
    result = invoked(*(str(word).replace("{old}", str(old)) for word in arguments), home=new)
    assert result.returncode == 2, result
    assert message in result.stderr

"""Sources of reports and comparisons, with the real commands run in this process."""

from __future__ import annotations

import importlib.metadata
import json
import re
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import loss_overview
from dashboards.published import RUNS_CSV
from search_spaces.plan import Plan
from search_spaces.record import CellResult
from search_spaces.study import Study
from service.home.ledger import Ledger
from service.home.location import open_home
from service.home.studies import register_study
from service.report.sources import load
from tests.service.oec import invoked


def train(home: Path, shift: float, *torch: str) -> None:
    """Writes the study smoke as it would be after a run whose losses grow by ``shift`` per unit of learning rate.

    Args:
        torch: versions of PyTorch, which alternate over the learning rates.
    """
    study = Study.load("smoke")
    versions = dict(zip(study.lrs, cycle(torch or ("2.13.0",)), strict=False))
    place = open_home(home)
    register_study(place, study)
    with Ledger(place.ledger("smoke"), "smoke", write=True) as ledger:
        cells = Plan(study, "data").cells
        ledger.plan(cells)
        for cell in cells:
            loss = 3 + shift * cell.lr
            result = CellResult(state="finished", val_loss=loss, l_init=9.0, train_seconds=1.0, torch=versions[cell.lr])
            ledger.end(cell.id, result)


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


def test_two_versions_of_pytorch_in_a_curve_are_a_warning(tmp_path: Path) -> None:
    """The warning is in the terminal, on the page and in the table of curves, also in a report that is made from
    ``runs.csv``."""
    train(tmp_path / "home", 1.0, "2.11.0+cu130", "2.13.0+cpu")
    sentence = "every curve: cells were trained with PyTorch 2.11.0+cu130 and 2.13.0+cpu, which may explain some of the"
    for source in ("smoke", tmp_path / "smoke" / "runs.csv"):
        out = tmp_path / Path(source).stem
        result = invoked("report", source, "--out", out, "--format", "html", "--format", "csv", home=tmp_path / "home")
        assert result.returncode == 0, result
        assert sentence in " ".join(result.stdout.split())
        assert sentence in (out / "report.html").read_text()
        assert pd.read_csv(out / "tables" / "sensitivity.csv")["note"].str.contains("PyTorch 2.11.0").all()
        assert set(pd.read_csv(out / "runs.csv")["torch"]) == {"2.11.0+cu130", "2.13.0+cpu"}
    assert "torch 2.11.0+cu130 and 2.13.0+cpu" in (tmp_path / "smoke" / "report.html").read_text(), (
        "the provenance must name both versions"
    )


def test_a_study_next_to_a_csv_of_another_program(homes: tuple[Path, Path], tmp_path: Path) -> None:
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
    assert "Only in published: 16M baseline" in other.stdout


AGREES = (
    "Recomputed from these runs, 50 of 50 LRS, 50 of 50 best losses, 50 of 50 best learning rates and 15 of 15 extra "
    "training times match the published numbers to the last digit."
)


@pytest.mark.parametrize("source", ["published", "shipped", "overview"])
def test_published_runs_are_compared_with_the_published_numbers(
    source: str, homes: tuple[Path, Path], tmp_path: Path
) -> None:
    overview = loss_overview.write(tmp_path / "loss_overview_all.csv", loss_overview.published_rows())
    path = {"published": "published", "shipped": RUNS_CSV, "overview": overview}[source]
    out = tmp_path / "out"
    result = invoked("report", path, "--out", out, "--format", "csv", "--format", "html", home=homes[0])
    assert result.returncode == 0, result
    assert AGREES in " ".join(result.stdout.split())
    assert result.stdout.count("Recomputed and published results") == 1
    assert "Learning-rate sensitivity" not in result.stdout, (
        "this table would only repeat a part of the published comparison"
    )
    assert len(pd.read_csv(out / "tables" / "published.csv")) == 50
    assert len(pd.read_csv(out / "tables" / "published_overhead.csv")) == 15
    page = (out / "report.html").read_text()
    assert f"<li>{AGREES}</li>" in page
    assert 'id="published"' not in page, "the overlay would draw the published curves over themselves"


def test_a_report_on_another_source_is_written_to_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it consists of a page and tables, and nothing is written to the current folder. The last line of the
    output is the page's path."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    home = tmp_path / "home"
    result = invoked("report", "published", home=home)
    assert result.returncode == 0, result
    folder = home / "reports" / "published"
    assert result.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert {path.name for path in folder.iterdir()} == {"report.html", "runs.csv", "runs.parquet", "tables"}
    assert not list((tmp_path / "here").iterdir())
    with_figure = invoked("report", "published", "--only", "lrs-scale", "--format", "svg", home=home)
    assert with_figure.returncode == 0, with_figure
    assert (folder / "figures" / "lrs-scale.svg").is_file()
    assert "from an earlier report" in invoked("report", "published", home=home).stdout


@pytest.mark.parametrize("name", ["..", "../../up", ".hidden", "a/b", ""])
def test_a_report_stays_in_the_home(name: str, tmp_path: Path) -> None:
    home = open_home(tmp_path)
    assert home.report(name).parent == tmp_path / "reports"


def test_a_study_next_to_the_published_runs(homes: tuple[Path, Path], tmp_path: Path) -> None:
    result = invoked("report", "smoke", "published", "--out", tmp_path, "--format", "csv", home=homes[0])
    assert result.returncode == 0, result
    assert "Learning-rate sensitivity: smoke and published" in " ".join(result.stdout.split())
    assert AGREES in " ".join(result.stdout.split())
    assert set(pd.read_csv(tmp_path / "tables" / "published.csv")["study"]) == {"published"}


def test_several_files_of_the_published_repository(homes: tuple[Path, Path], tmp_path: Path) -> None:
    rows = loss_overview.published_rows()
    files = [
        loss_overview.write(tmp_path / f"loss_overview{ending}.csv", of)
        for ending, of in (("", [row for row in rows if "-zloss-" not in str(row["name"])]), ("_all", rows))
    ]
    result = invoked("report", *files, "--out", tmp_path / "out", "--format", "csv", home=homes[0])
    assert result.returncode == 0, result
    assert "80 of 80 LRS" in result.stdout
    assert "25 of 25 extra training times" in " ".join(result.stdout.split())


def test_a_report_by_sources_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Ray job whose working directory is a checkout, on nodes without ``oec``."""
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "oec-sensitivity":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert load("published", open_home(tmp_path)).provenance["reported with"].startswith("oec-sensitivity 0.")
    assert invoked("--version", home=tmp_path).stdout.startswith("oec, version 0.")


def test_a_study_in_the_home_takes_precedence_over_the_published_runs(tmp_path: Path) -> None:
    study = Study.load("smoke").model_dump(mode="json", exclude_none=True) | {"name": "published"}
    home = open_home(tmp_path / "home")
    register_study(home, Study.validate_fields(study))
    with Ledger(home.ledger("published"), "published", write=True) as ledger:
        ledger.plan(Plan(Study.load("smoke"), "data").cells)
    assert "study file" in load("published", home).provenance
    assert load("published", open_home(tmp_path / "empty")).provenance["table"] == "published.csv"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "{old}:nowhere"), "is not a study of that home; studies in"),
        (("report", "smoke", "smoke"), "is given twice"),
        (("report", "smoke", "--format", "gif"), "--format: 'gif' is not a valid format; choose from html, png"),
        (("report", "smoke", "--only", "los"), "--only: 'los' matches nothing"),
        (("report", "smoke", "--column", "lr=x"), "does not apply to a study of a home"),
        (("report", "smoke", "{old}:smoke", "--column", "lr=x"), "does not apply to studies of a home"),
        (("report", RUNS_CSV, "--column", "rate=lr"), "'rate' is not one of our columns"),
        (("diff", "smoke", "nowhere"), "'nowhere' is neither a study of this home"),
        (("report", "nowhere"), "studies here: smoke; the published runs: published"),
        (("report", "published", "--column", "lr=x"), "does not apply to a study of a home"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], message: str, homes: tuple[Path, Path], tmp_path: Path) -> None:
    new, old = homes
    result = invoked(*(str(word).replace("{old}", str(old)) for word in arguments), home=new)
    assert result.returncode == 2, result
    assert message in result.stderr

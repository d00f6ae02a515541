"""What a study's parent run has in MLflow: its model card, a saved view of its cells, and its datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from dashboards.recommendation import recommendation
from dashboards.runs import from_records
from dashboards.sensitivity import curves
from dashboards.views import color_of
from search_spaces.plan import Plan
from search_spaces.record import CellResult
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.location import open_home
from service.mlflow.saved_view import TAG_PREFIX, view_key, view_path
from service.mlflow.sink import sync
from service.mlflow.store import EXPERIMENT, NOTE

SMOKE = Study.load("smoke")
LOGGED = {"logits_absmax": 5.0, "log_z": 2.0, "val_loss": 3.0}


class Delivered:
    """A study whose cells have ended, and its runs in an MLflow store.

    Args:
        untrained: number of cells that have not ended yet.
    """

    def __init__(self, home: Home, study: Study, untrained: int = 0) -> None:
        self.uri, self.home, self.study = f"sqlite:///{home.path / 'mlflow.db'}", home, study
        self.client = MlflowClient(self.uri)
        self.ledger = Ledger(home.ledger(study.name), study.name, write=True)
        self.ledger.plan(Plan(study, "the-digest").cells)
        cells = self.ledger.missing()
        for place, cell in enumerate(cells[: len(cells) - untrained]):
            self.end(cell.id, 2.5 + place / 10)
        self.sync()

    def end(self, cell: str, loss: float) -> None:
        folder = self.home.cell(cell, self.study.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 20, "time": 1000.0, **LOGGED}) + "\n")
        self.ledger.end(cell, CellResult(state="finished", val_loss=loss, l_init=5.5, steps=20))

    def sync(self) -> None:
        sync(self.uri, self.home, self.study, self.ledger, self.home.path / "no-report", ask_store=True)

    @property
    def experiment(self) -> Any:
        return self.client.get_experiment_by_name(EXPERIMENT)

    def runs(self, condition: str = "") -> list[Run]:
        mine = f"tags.`oec.study` = '{self.study.name}'"
        return list(self.client.search_runs([self.experiment.experiment_id], condition or mine))

    @property
    def parent(self) -> Run:
        (parent,) = (run for run in self.runs() if "oec.cell" not in run.data.tags)
        return parent

    @property
    def cells(self) -> list[Run]:
        return [run for run in self.runs() if "oec.cell" in run.data.tags]

    @property
    def description(self) -> str:
        return self.parent.data.tags[NOTE]

    @property
    def view(self) -> str:
        return str(self.experiment.tags[TAG_PREFIX + view_key(self.study)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Creates one home for the whole module, because a new MLflow database takes seconds."""
    return open_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def delivered(home: Home, request: pytest.FixtureRequest) -> Iterator[Delivered]:
    name = request.node.name.replace("_", "-")[:60]
    found = Delivered(home, SMOKE.model_copy(update={"name": name}))
    yield found
    found.ledger.close()


def test_the_description_is_the_model_card(delivered: Delivered) -> None:
    facts = curves(from_records(delivered.ledger.records()), delivered.study.grid)
    (sentence, *_) = recommendation(facts)
    card = delivered.description
    assert card.startswith(f"**{sentence}**")
    assert f"]({view_path(delivered.experiment.experiment_id, delivered.study)})" in card
    for curve in facts:
        assert f"| {curve.method} |" in card
        assert f"| {curve.LRS:.3f} |" in card, "with one seed, LRS has no interval"
    assert "- Cells: 6 finished" in card
    assert "- Data: `the-digest`" in card
    assert SMOKE.description in card


def test_only_a_shipped_study_is_reproduced_by_its_name(home: Home, delivered: Delivered) -> None:
    assert "- Reproduce: `oec run study.yaml`" in delivered.description
    shipped = Delivered(home, SMOKE)
    assert "- Reproduce: `oec run smoke`" in shipped.description
    shipped.ledger.close()


def test_sync_brings_the_description_up_to_date(home: Home) -> None:
    early = Delivered(home, SMOKE.model_copy(update={"name": "early"}), untrained=1)
    assert "- Cells: 1 planned, 5 finished" in early.description
    (last,) = early.ledger.missing()
    early.end(last.id, 1.25)
    early.sync()
    assert "- Cells: 6 finished" in early.description
    assert "| 1.250 |" in early.description
    early.ledger.close()


def test_an_edited_description_is_kept_until_it_is_deleted(delivered: Delivered) -> None:
    card, parent = delivered.description, delivered.parent.info.run_id
    delivered.client.set_tag(parent, NOTE, f"{card}\n\nRead this first: the GPU was shared.")
    delivered.sync()
    assert delivered.description.endswith("the GPU was shared.")
    delivered.client.set_tag(parent, NOTE, "")
    delivered.sync()
    assert delivered.description == card


def test_the_saved_view_shows_the_cells_of_the_study_against_the_learning_rate(delivered: Delivered) -> None:
    envelope = json.loads(delivered.view)
    assert envelope["name"] == f"{delivered.study.name}: loss against lr"
    state = json.loads(envelope["state"])
    shown = delivered.runs(state["searchFilter"])
    assert sorted(run.info.run_id for run in shown) == sorted(run.info.run_id for run in delivered.cells)
    assert len(shown) == 6
    metrics, params = shown[0].data.metrics, shown[0].data.params
    (first, *_) = state["compareRunCharts"]
    assert (first["type"], first["xaxis"]["key"], first["yaxis"]["key"]) == ("SCATTER", "log10_lr", "curve_loss")
    for chart in state["compareRunCharts"]:
        assert chart["metricSectionId"] == state["compareRunSections"][0]["uuid"]
        named = [chart[axis]["key"] for axis in ("xaxis", "yaxis") if axis in chart]
        assert set(named + chart.get("selectedMetrics", [])) <= set(metrics), "MLflow would show an empty chart"
        assert set(chart.get("selectedParams", [])) <= set(params)
    columns = {column.removeprefix("params.").strip("`") for column in state["selectedColumns"] if "params" in column}
    assert columns == {"method", "gamma", "lr", "seed"}


def test_a_view_that_somebody_overwrote_is_kept(delivered: Delivered) -> None:
    ours = delivered.view
    delivered.sync()
    assert delivered.view == ours, "nothing has changed"
    theirs = json.dumps({"name": "mine", "createdAt": 1, "state": "{}"})
    key = TAG_PREFIX + view_key(delivered.study)
    delivered.client.set_experiment_tag(delivered.experiment.experiment_id, key, theirs)
    delivered.sync()
    assert delivered.view == theirs


def test_a_view_follows_the_study_to_a_new_parent(delivered: Delivered) -> None:
    """This happens if the runs of the old parent were deleted."""
    for run in delivered.runs():
        delivered.client.delete_run(run.info.run_id)
    delivered.sync()
    assert delivered.parent.info.run_id in json.loads(delivered.view)["state"]


def test_parent_and_cells_name_their_data(delivered: Delivered) -> None:
    for run in (delivered.parent, *delivered.cells):
        found = [(put.dataset.name, put.dataset.digest, put.tags[0].value) for put in run.inputs.dataset_inputs]
        assert sorted(found) == [
            ("builtin", "the-digest", "training"),
            ("builtin validation", "the-digest", "validation"),
        ]


def test_runs_have_the_colors_of_the_report(delivered: Delivered) -> None:
    for run in delivered.cells:
        assert run.data.tags["mlflow.runColor"] == color_of(run.data.params["method"])

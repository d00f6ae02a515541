"""A home with a running study or a complete one, as a driver leaves them, and the application that serves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from search_spaces.cell import Cell
from search_spaces.plan import Plan
from search_spaces.record import CellResult
from search_spaces.study import Study
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.location import open_home
from service.home.studies import register_study
from service.http.app import create_app
from service.http.models import Settings
from service.http.tokens import TokenFile

STUDY = Study.load("smoke")
CELLS = list(Plan(STUDY, "data").cells)
TOKENS_PER_SECOND = 2560.0
FINISHED = CellResult(
    state="finished", val_loss=2.5, l_init=5.5, train_seconds=2.0, steps=20, tokens_per_second=TOKENS_PER_SECOND
)


@dataclass(frozen=True)
class Served:
    """An application, with clients for each level of access."""

    home: Home
    app: FastAPI
    anybody: TestClient
    reader: TestClient
    runner: TestClient


def client(app: FastAPI, secret: str | None = None) -> TestClient:
    return TestClient(
        app, headers={"Authorization": f"Bearer {secret}"} if secret else {}, raise_server_exceptions=False
    )


def served(home: Home, **settings: object) -> Served:
    """Creates an application that starts no Ray, because these tests do not need it."""
    tokens = TokenFile(home)
    secrets = {role: tokens.add(f"a-{role}er", role, None) for role in ("read", "run")}  # type: ignore[arg-type]
    app = create_app(home, Settings.model_validate(settings), connect=False)
    return Served(home, app, client(app), client(app, secrets["read"]), client(app, secrets["run"]))


def begin(home: Home, study: Study = STUDY) -> Ledger:
    """Opens the ledger of a study whose first cell finished, second diverged, and third is running."""
    register_study(home, study)
    ledger = Ledger(home.ledger(study.name), study.name, write=True)
    ledger.plan(CELLS)
    for cell in CELLS[:3]:
        ledger.start(cell.id)
    ledger.end(CELLS[0].id, FINISHED)
    ledger.end(CELLS[1].id, CellResult(state="diverged", l_init=5.5, reason="the loss is nan"))
    path = home.metrics(CELLS[2].id, study.name)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"step": 10, "time": 2.0, "val_loss": 3.25}) + "\n")
    return ledger


def ended(home: Home, study: Study, loss: Callable[[Cell], float]) -> None:
    """Writes the ledger of a study whose cells all finished with the losses that ``loss`` returns."""
    register_study(home, study)
    cells = list(Plan(study, "data").cells)
    with Ledger(home.ledger(study.name), study.name, write=True) as ledger:
        ledger.plan(cells)
        for cell in cells:
            ledger.start(cell.id)
            ledger.end(cell.id, replace(FINISHED, val_loss=loss(cell)))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


@pytest.fixture
def service(home: Home) -> Iterator[Served]:
    with begin(home):
        yield served(home)

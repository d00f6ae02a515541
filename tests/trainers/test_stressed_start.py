"""Training that starts with E shifted along the mean hidden state: ``model.initial_mean_logit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from search_spaces.cell import Cell
from search_spaces.training_spec import ModelSpec
from trainers.data import Tokens
from trainers.loop import Trainer
from trainers.world import World

SHIFT = 40.0


def rows(tokens: Tokens, cell: Cell, folder: Path, stop_at: int | None = None) -> list[dict[str, float]]:
    asked = iter(range(1000))
    stop = (lambda: next(asked) == stop_at) if stop_at is not None else (lambda: False)
    Trainer(World.single("cpu"), tokens).run(cell, folder, evaluate_every=4, checkpoint_every=4, should_stop=stop)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stressed(method: str = "baseline", shift: float = SHIFT, **training: Any) -> Cell:
    return tiny.cell(method, model=ModelSpec(initial_mean_logit=shift), **({"logits_dtype": "float32"} | training))


def test_the_mean_logit_moves_and_a_float32_loss_does_not(tokens: Tokens, tmp_path: Path) -> None:
    normal, shifted = (rows(tokens, stressed(shift=shift), tmp_path / str(shift))[0] for shift in (0.0, SHIFT))
    assert shifted["logits_mean"] - normal["logits_mean"] == pytest.approx(SHIFT, rel=1e-4)
    assert shifted["val_loss"] == pytest.approx(normal["val_loss"], abs=1e-4)
    assert shifted["logits_std"] == pytest.approx(normal["logits_std"], rel=1e-3)


def test_bfloat16_logits_lose_their_differences(tokens: Tokens, tmp_path: Path) -> None:
    """At a mean of 300, adjacent bfloat16 numbers are 2 apart."""
    normal, shifted = (
        rows(tokens, stressed(shift=shift, logits_dtype="bfloat16"), tmp_path / str(shift))[0] for shift in (0.0, 300.0)
    )
    assert shifted["val_loss"] > normal["val_loss"] + 0.01


def test_mu_centering_removes_the_shift_with_the_first_step(tokens: Tokens, tmp_path: Path) -> None:
    baseline, centered = (rows(tokens, stressed(name), tmp_path / name) for name in ("baseline", "mu-centering"))
    assert abs(centered[1]["logits_mean"]) < 1e-3 < baseline[1]["logits_mean"]


def test_a_resumed_run_is_not_shifted_again(tokens: Tokens, tmp_path: Path) -> None:
    whole = rows(tokens, stressed(), tmp_path / "whole")
    rows(tokens, stressed(), tmp_path / "parts", stop_at=5)
    parts = rows(tokens, stressed(), tmp_path / "parts")
    assert [row["val_loss"] for row in parts] == [row["val_loss"] for row in whole]


def test_it_is_a_factor_of_the_cell() -> None:
    assert stressed().id != stressed(shift=0.0).id

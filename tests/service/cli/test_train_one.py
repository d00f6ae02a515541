"""The device that ``oec train`` uses for its cell, which runs in the command's own process."""

from __future__ import annotations

import pytest
import torch

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.cli.train_one import device_of


def study_with(gpus: float) -> Study:
    smoke = Study.load("smoke")
    return smoke.model_copy(update={"resources": smoke.resources.model_copy(update={"gpus_per_worker": gpus})})


@pytest.mark.parametrize("available", [False, True])
def test_a_study_without_gpus_trains_on_the_cpu(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert device_of(study_with(0)) == "cpu"


@pytest.mark.parametrize("gpus", [0.25, 1])
def test_a_study_with_gpus_needs_one_here(gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(study_with(gpus)) == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInput) as caught:
        device_of(study_with(gpus))
    assert (caught.value.field, caught.value.value) == ("resources.gpus_per_worker", gpus)
    assert caught.value.remedy == "set it to 0"

"""The form for a new study in a real browser: its controls, the matching study file, errors, and the estimate."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from search_spaces.cell import round_significant
from search_spaces.shipped import shipped
from search_spaces.study import Study
from service.home.location import open_home
from tests.browser.test_service_page import at, entered
from tests.service.http.conftest import Served, served
from tests.service.http.test_events import listening

pytestmark = pytest.mark.slow
EVERY_FIELD = """
name: every
description: Every field that the form has differs from its default.
scales: [nano, tiny]
data: {tokenizer: bytes, vocab_size: 512}
attention_norms: [none, qkv-norm]
methods: [z-loss, {method: soft-cap, gamma: [20.0, 30.0]}, baseline]
lrs: [0.002, 0.01, 0.3]
factors: {training.eps: [1.0e-8, 1.0e-7], model.dropout: [0.0, 0.5]}
pair: [[training.eps, model.dropout]]
exclude: [{scale: nano, method: baseline}]
seeds: [4, 7]
model: {tied: true, init: normal, dropout: 0.1, initial_mean_logit: 3.0}
training: {steps: 30, batch_size: 8, sequence_length: 32, schedule: wsd, warmup_steps: 3, decay_share: 0.5, min_lr: 0.0,
  optimizer: muon, muon_lr_ratio: 2.0, parametrization: mup, mup_base: tiny, betas: [0.8, 0.9], weight_decay: 0.1,
  weight_decay_mode: coupled, cautious_weight_decay: true, grad_clip: 2.0, precision: float32, logits_dtype: float32,
  deterministic: true, eval_sequences: 8, final_eval_sequences: 16, eps: 1.0e-7}
refine: {trials: 3, sampler: gp, edge: 1.5, pruner: median, budget: {cells: 5, minutes: 2.5}}
intervals: {evaluate: 10, checkpoint: 20, give_up: {for: 4}}
resources: {workers: 2, cpus_per_worker: 2, gpus_per_worker: 1.0, concurrency: 3, compile: false, max_failures: 5,
  autoscale: true}
keep_weights: {every: 10}
"""
TYPE = """(input, text) => {
  for (const key of text) {
    input.value += key;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }
}"""
"""Types all keys without a pause, so that a busy machine cannot make the page think that typing has ended."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(open_home(tmp_path_factory.mktemp("form") / "home"))


@pytest.fixture
def page(browser: Browser, service: Served) -> Iterator[Page]:
    page = browser.new_page()
    with listening(service) as url:
        # A token with the role read can do everything here except start a study, which test_service_page.py tests.
        complaints = entered(page, at(url), service.reader.headers["Authorization"].removeprefix("Bearer "))
        page.click("nav >> text=New study")
        expect(page.locator("#estimate")).to_contain_text("Still to complete")
        yield page
        assert [text for text in complaints if "status of 4" not in text] == []  # to invalid requests
        page.close()


def study_of(page: Page) -> Study:
    """Returns the study in the file below the form."""
    return Study.parse(page.input_value("#yaml"))


def by_id(page: Page, name: str):  # type: ignore[no-untyped-def]
    return page.locator(f"[id='field-{name}']")


def cost(page: Page, cells: int) -> None:
    """Waits until the estimate matches the current study."""
    expect(page.locator("#estimate")).to_have_text(re.compile(rf"^{cells} cells?, about "))


@pytest.mark.parametrize("name", ["short", "stressed"])
def test_a_shipped_study_is_a_starting_point(page: Page, name: str) -> None:
    study = Study.load(name)
    options = page.locator("#start option").all_text_contents()
    assert options == shipped()
    page.select_option("#start", name)
    expect(page.locator("#start-hint")).to_have_text(study.description)
    page.click("#use-start")
    cost(page, len(study.curve_keys) * len(study.lrs) * len(study.seeds))
    assert study_of(page) == study.model_copy(update={"description": ""})
    assert page.locator(".rows select").evaluate_all("all => all.map(one => one.value)") == [
        choice.method for choice in study.methods
    ]
    page.fill("#field-name", "mine")
    page.check("#field-scales-nano")
    cost(page, 2 * len(study.curve_keys) * len(study.lrs) * len(study.seeds))
    assert study_of(page).scales == ("nano", "tiny")


def test_a_study_by_keyboard_alone(page: Page) -> None:
    by_id(page, "name").focus()
    page.keyboard.type("by-keyboard")
    by_id(page, "scales-tiny").focus()
    page.keyboard.press("Space")
    page.locator("#add-method").focus()
    page.keyboard.press("Enter")
    second = page.locator(".rows select").nth(1)
    expect(second).to_be_focused()
    expect(second).to_have_value("z-loss")
    expect(page.get_by_label("gamma of z-loss")).to_have_value("0.0001")
    assert second.locator("option[disabled]").all_text_contents() == ["baseline"], "a method can be chosen twice"
    page.keyboard.type("soft")
    expect(page.get_by_label("c of soft-cap")).to_have_value("30")
    page.keyboard.press("Tab")
    page.keyboard.type("20, 30")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Remove soft-cap")).to_be_focused()
    page.locator("#add-method").press("Enter")
    page.get_by_label("Remove z-loss").press("Enter")
    expect(page.get_by_label("Remove soft-cap")).to_be_focused()
    for key, text in (("low", "1e-3"), ("high", "2"), ("count", "4")):
        by_id(page, f"lrs-{key}").focus()
        page.keyboard.type(text)
    between = [round_significant(1e-3 * 2000 ** (i / 3)) for i in (1, 2)]
    expect(by_id(page, "lrs")).to_have_value(f"0.001, {between[0]}, {between[1]}, 2")
    by_id(page, "seeds-count").fill("3")
    expect(by_id(page, "seeds")).to_have_value("1, 2, 3")
    cost(page, 3 * 4 * 3)
    by_id(page, "lrs").fill("0.001 0.5")
    expect(by_id(page, "lrs-high")).to_have_value("0.5")
    expect(by_id(page, "lrs-count")).to_have_value("2")
    cost(page, 3 * 2 * 3)
    expected = {"name": "by-keyboard", "scales": ["tiny"], "lrs": [0.001, 0.5], "seeds": 3}
    expected["methods"] = ["baseline", {"method": "soft-cap", "gamma": [20, 30]}]
    assert study_of(page) == Study.validate_fields(expected)


def test_form_and_file_agree_on_every_field(page: Page) -> None:
    study = Study.parse(EVERY_FIELD)
    page.click("summary >> text=Study file")
    page.fill("#yaml", EVERY_FIELD)
    expect(by_id(page, "name")).to_have_value("every")
    expect(by_id(page, "lrs-count")).to_have_value("3")
    expect(by_id(page, "training.schedule")).to_have_value(json.dumps("wsd"))
    expect(page.locator("#study-form")).not_to_have_attribute("inert", "")
    by_id(page, "name").fill("every-other")
    expect(page.locator("#yaml")).to_have_value(re.compile("^name: every-other"))
    assert study_of(page) == study.model_copy(update={"name": "every-other"})
    untouched = {
        f"{section}.{name}"
        for section in ("data", "model", "training", "refine", "intervals", "resources", "keep_weights")
        for spec in [getattr(study, section)]
        for name, field in type(spec).model_fields.items()
        if getattr(spec, name) == field.default
    }
    assert untouched == {"data.source", "data.path", "data.validation"}, (
        "EVERY_FIELD must give every field a value other than its default"
    )
    left = {name for name in Study.model_fields if getattr(study, name) == Study.model_fields[name].default}
    assert left == {"trainer", "lr_factor"}


def test_a_file_with_an_error_locks_the_form(page: Page) -> None:
    page.click("summary >> text=Study file")
    for text, problem in (("name: x\nlrs: [", "is not valid YAML"), ("name: x\nscales: [tin]", "did you mean 'tiny'?")):
        page.fill("#yaml", text)
        expect(page.locator("#yaml-problem")).to_contain_text(problem)
        expect(page.locator("#yaml")).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#locked")).to_be_visible()
        expect(page.locator("#study-form")).to_have_attribute("inert", "")
    assert page.input_value("#yaml") == "name: x\nscales: [tin]", "what the user typed was lost"
    page.click("#submit")
    expect(page.locator("#yaml")).to_be_focused()
    page.fill("#yaml", "name: x\nscales: [tiny]\nmethods: [mu-centering]\nlrs: [0.1]")
    cost(page, 1)
    expect(page.locator("#locked")).to_be_hidden()
    expect(page.locator(".rows select")).to_have_value("mu-centering")


def test_errors_are_shown_at_their_fields(page: Page) -> None:
    expect(page.locator("#study-form [aria-invalid]")).to_have_count(0)
    by_id(page, "name").fill("Not a name")
    by_id(page, "description").focus()
    expect(by_id(page, "name")).to_have_attribute("aria-invalid", "true")
    expect(by_id(page, "name-problem")).to_contain_text("This is not a valid name.")
    expect(page.locator("#study-form [aria-invalid]")).to_have_count(1)
    by_id(page, "name").fill("mine")
    expect(by_id(page, "name")).not_to_have_attribute("aria-invalid", "true")
    page.click("summary >> text=More of training")
    by_id(page, "training.grad_clip").fill("-1")
    page.click("summary >> text=More of training")
    page.click("#submit")
    expect(by_id(page, "scales-nano")).to_be_focused()
    for name in ("scales-nano", "lrs", "training.grad_clip"):
        place = by_id(page, name)
        expect(place).to_have_attribute("aria-invalid", "true")
        described = [
            page.locator(f"[id='{one}']").text_content() for one in place.get_attribute("aria-describedby").split()
        ]  # type: ignore[union-attr]
        assert any(text.startswith("This ") for text in described if text), name
    expect(by_id(page, "training.grad_clip")).to_be_visible()
    page.check("#field-scales-tiny")
    by_id(page, "lrs").fill("0.1, x")
    expect(by_id(page, "lrs-problem")).to_contain_text("valid number")
    by_id(page, "lrs").fill("0.1")
    by_id(page, "training.grad_clip").fill("2")
    page.locator("#add-method").click()
    page.get_by_label("gamma of z-loss").fill("0")
    expect(page.get_by_label("gamma of z-loss")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("gamma of z-loss").fill("")
    cost(page, 2)
    assert page.locator("#study-form [aria-invalid]").count() == 0


def test_errors_without_a_field_are_shown_at_the_button(page: Page) -> None:
    page.select_option("#start", "smoke")
    page.click("#use-start")
    cost(page, 6)
    by_id(page, "seeds-count").fill("999")
    expect(page.locator("#problems")).to_contain_text("are more than this service accepts")
    assert page.locator("#cost").is_hidden()
    by_id(page, "seeds-count").fill("2")
    cost(page, 12)
    expect(page.locator("#problems")).to_be_empty()
    page.click("#submit")
    expect(page.locator("#problems")).to_contain_text("token: is read-only; use a token with the role run")
    expect(page.locator("#submit")).to_be_enabled()


def test_the_estimate_is_announced_once_typing_ends(page: Page) -> None:
    page.select_option("#start", "smoke")
    page.click("#use-start")
    cost(page, 6)
    assert page.get_attribute("#estimate", "role") == "status"
    assert page.locator("#cost dt").all_text_contents()[:3] == ["curves", "cells", "tokens"]
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    by_id(page, "lrs").evaluate(TYPE, ", 1, 2")
    cost(page, 12)
    assert len(asked) == 1, "the form must send one request when typing ends, not one per key"


def test_what_was_typed_is_kept_while_another_view_is_shown(page: Page, tmp_path: Path) -> None:
    by_id(page, "name").fill("kept")
    page.click("nav >> text=Studies")
    page.click("nav >> text=New study")
    expect(by_id(page, "name")).to_have_value("kept")
    page.check("#field-scales-tiny")
    expect(page.locator("#yaml")).to_have_value(re.compile("kept"))

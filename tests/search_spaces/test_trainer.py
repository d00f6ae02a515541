"""The ``trainer`` field of a study: what it accepts, what its identity depends on, and how its commands are created."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from search_spaces.cell import ForeignCell
from search_spaces.command_line import placeholders, substitute
from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.resources import ResourceSpec
from search_spaces.study import Study
from search_spaces.trainer import TrainerSpec

COMMAND = "python train.py --lr {lr} --wd {wd} --seed {seed} --out {folder}"
METRICS = {"file": "{folder}/log.jsonl"}
MINE = {"name": "mine", "factors": {"wd": [0, 0.1]}, "lrs": [0.01, 0.1], "seeds": 2}


def study(folder: Path, trainer: dict[str, Any] | None = None, **changes: Any) -> Study:
    (folder / "train.py").touch()
    trainer = {"command": COMMAND, "metrics": METRICS} | (trainer or {})
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINE, "trainer": trainer, **changes}))
    return Study.load(str(path))


def test_a_study_of_a_command_has_a_curve_for_each_combination(tmp_path: Path) -> None:
    spec = study(tmp_path)
    plan = Plan(spec, "digest")
    assert [curve.label for curve in plan.curves] == ["wd=0", "wd=0.1"]
    assert len(plan.cells) == len({cell.id for cell in plan.cells}) == 8
    cell = plan.cells[0]
    assert isinstance(cell, ForeignCell)
    assert (cell.scale, cell.method, cell.factors, cell.lr, cell.seed) == ("train.py", "command", {"wd": 0}, 0.01, 1)


def test_it_is_written_and_read_without_fields_of_our_model(tmp_path: Path) -> None:
    spec = study(tmp_path)
    written = spec.to_yaml()
    assert Study.parse(written) == spec, "the stored directory is not absolute"
    assert not {"scales", "methods", "data", "training", "model"} & set(yaml.safe_load(written))


def test_the_location_of_the_code_is_not_part_of_a_study(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    here, there = (study(folder) for folder in folders)
    assert here.trainer is not None
    assert there.trainer is not None
    assert here.trainer.directory != there.trainer.directory
    assert here.hash == there.hash
    assert here.trainer.digest(1) == there.trainer.digest(1)
    (folders[1] / "train.py").write_text("changed")
    assert here.trainer.digest(1) != there.trainer.digest(1)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"command": COMMAND + " --more"}, False),
        ({"metrics": {"csv": "{folder}/log.csv"}}, False),
        ({"metrics": METRICS | {"val_loss": "loss"}}, False),
        ({"l_init": 3.0}, False),
        ({"metrics": METRICS | {"others": ["grad_norm"]}}, True),
        ({"resume": "--resume"}, True),
        ({"silence_s": 5, "grace_s": 1}, True),
    ],
)
def test_what_a_digest_depends_on(changes: dict[str, Any], same: bool, tmp_path: Path) -> None:
    before, after = study(tmp_path).trainer, study(tmp_path, changes).trainer
    assert before is not None
    assert after is not None
    assert (before.digest(1) == after.digest(1)) is same


def test_workers_matter_only_if_the_command_uses_them(tmp_path: Path) -> None:
    without = study(tmp_path).trainer
    using = study(tmp_path, {"command": COMMAND + " --nproc {workers}"}).trainer
    assert without is not None
    assert using is not None
    assert without.digest(1) == without.digest(2)
    assert using.digest(1) != using.digest(2)


def test_identity_is_guessed_from_the_command(tmp_path: Path) -> None:
    for name in ("train.py", "config.yaml", "pkg/main.py", "pkg/__main__.py", "other.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def identity(command: str, **fields: Any) -> list[str]:
        spec = TrainerSpec(command=command, metrics=METRICS, directory=str(tmp_path), **fields)
        return spec.identity_files()

    assert identity("python train.py --config=config.yaml --lr {lr}") == ["config.yaml", "train.py"]
    assert identity("python -m pkg.main") == ["pkg/main.py"]
    assert identity("python -m pkg") == ["pkg/__main__.py"]
    assert identity("anything", identity=["pkg/*.py", "other.py"]) == ["other.py", "pkg/__main__.py", "pkg/main.py"]
    assert identity("anything", identity=[]) == []
    with pytest.raises(InvalidInput, match=r"trainer\.identity is missing, and no file in "):
        identity("anything {lr}")
    with pytest.raises(InvalidInput, match="matches no file"):
        identity("anything", identity=["*.txt"])
    object_ = TrainerSpec(python="pkg.main:Trial", directory=str(tmp_path))
    assert object_.identity_files() == ["pkg/main.py"]
    assert object_.name == "main"


@pytest.mark.parametrize(
    ("trainer", "changes", "message"),
    [
        ({"command": COMMAND.replace("wd}", "wdd}")}, {}, r"has the placeholder {wdd} in .*; did you mean {wd}\?"),
        ({"command": COMMAND.replace("--wd {wd}", "")}, {}, "varies wd, which trainer.command does not use; add an"),
        ({"command": COMMAND.replace("--lr {lr}", "")}, {}, "varies lr, which"),
        ({"command": COMMAND.replace("--seed {seed}", "")}, {}, "varies seed, which"),
        (
            {"command": "python 'train.py"},
            {},
            r"cannot be split into words \(No closing quotation",
        ),
        ({"command": ""}, {}, r"trainer\.command: '' is empty"),
        ({"metrics": None}, {}, "has no metrics; say where the loss is found"),
        ({"metrics": {"file": "log.jsonl"}}, {}, "without {folder}, so that concurrent cells would share it"),
        ({"metrics": {"file": "{folder}/metrics.jsonl"}}, {}, "a file of this program; have the command write into a"),
        ({"metrics": {"file": "{folder}/**/*.jsonl"}}, {}, r"which may be {folder}/metrics.jsonl"),
        ({"metrics": {"csv": "{folder}/./output.log"}}, {}, r"which may be {folder}/output.log"),
        ({"metrics": {"wandb": "{folder}"}}, {}, "asks for wandb, whose offline files have no public reader"),
        ({"metrics": METRICS | {"csv": "{folder}/x"}}, {}, "has file and csv; give exactly one of"),
        ({"metrics": {"stdout": "loss ("}}, {}, "has an expression that is not valid"),
        ({"metrics": {"stdout": "loss (.*)"}}, {}, "has no expression with a group val_loss"),
        ({"metrics": {"stdout": "(?P<val_loss>.*)", "step": "iter"}}, {}, "the names of the groups are the keys"),
        ({"python": "pkg.mod:Trial"}, {}, "has both command and python"),
        ({"command": None, "python": "pkg.mod"}, {}, "does not name an object"),
        ({"options": {"a": 1}}, {}, "has options, which does not apply to command"),
        ({"nodes": 2}, {"resources": {"workers": 3}}, "spreads 3 workers over 2 nodes"),
        ({}, {"scales": ["tiny"]}, "has scales, which belongs to the OEC model, and a trainer of its own; remove"),
        ({}, {"factors": {"wd": [0], "a b": [1]}}, "has the factor 'a b', which cannot be a placeholder"),
        (
            {},
            {"factors": {"wd": [0], "folder": [1]}},
            "has the factor folder, which already means the cell",
        ),
    ],
)
def test_errors_have_a_remedy(trainer: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        study(tmp_path, trainer, **changes)


def test_placeholders_and_literal_braces() -> None:
    words = ["--a={a}", '{"x": 1}', "{{a}}", "{}", "{a.b}", "${HOME}"]
    assert placeholders(words) == {"a", "a.b", "HOME"}
    values = {"a": 3e-4, "a.b": (1, True), "HOME": "/h"}
    assert substitute(words, values) == ["--a=0.0003", '{"x": 1}', "{a}", "{}", "1,true", "$/h"]


def test_a_factor_on_the_axis_replaces_the_learning_rate(tmp_path: Path) -> None:
    command = "python train.py --wd {wd} --seed {seed}"
    changes = {"lr_factor": "wd", "factors": {"wd": [0.1, 0.2]}, "lrs": [1]}
    spec = study(tmp_path, {"command": command}, **changes)
    assert [cell.factors["wd"] for cell in Plan(spec, "digest").cells] == [0.1, 0.1, 0.2, 0.2]


def test_a_command_takes_the_resources_of_its_workers(tmp_path: Path) -> None:
    resources = ResourceSpec(workers=4, cpus_per_worker=3, gpus_per_worker=1)
    spec = TrainerSpec(command="x", metrics=METRICS, nodes=2)
    group = spec.group_resources(resources)
    assert (group.workers, group.cpus_per_worker, group.gpus_per_worker) == (2, 6, 2)
    assert TrainerSpec(python="a:B").group_resources(resources) == resources

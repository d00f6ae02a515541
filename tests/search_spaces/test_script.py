"""What is found out about training scripts in various styles from their source alone."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from search_spaces.errors import InvalidInput
from search_spaces.script.argument import Argument, merge
from search_spaces.script.command import draft_command
from search_spaces.script.draft import lr_grid
from search_spaces.script.help_text import from_config, from_help
from search_spaces.script.source import read_script, start_directory
from search_spaces.script.study_text import default_name, study_text
from search_spaces.script.styles import STYLES, style_of
from search_spaces.script.trial_class import draft_trial
from search_spaces.study import Study
from tests.search_spaces.scripts import draft, write

PRINTS = 'print(f"step {step}: train loss {a:.3f}, val loss {loss:8.4f}")\n'
SCRIPTS: dict[str, tuple[str, str]] = {
    "nanoGPT configurator": (
        """
        out_dir = 'out'
        learning_rate = 6e-4 # max learning rate
        batch_size = 2 * 8
        seed = 1337
        exec(open('configurator.py').read())
        """,
        "python train.py --learning_rate={lr} --seed={seed} --out_dir={folder}",
    ),
    "Hydra": (
        """
        import hydra
        @hydra.main(version_base=None, config_path="conf", config_name="config")
        def main(cfg): ...
        """,
        "python train.py optim.lr={lr} seed={seed} hydra.run.dir={folder}",
    ),
    "HfArgumentParser": (
        """
        from dataclasses import dataclass, field
        from transformers import HfArgumentParser, TrainingArguments
        @dataclass
        class Data:
            path: str = field(metadata={"help": "text"})
        parser = HfArgumentParser((Data, TrainingArguments))
        """,
        "python train.py --path {path} --learning_rate {lr} --seed {seed} --output_dir {folder}",
    ),
    "LightningCLI": (
        """
        import lightning as L
        from lightning.pytorch.cli import LightningCLI
        class Model(L.LightningModule):
            def __init__(self, lr: float = 1e-3, weight_decay: float = 0.1):
                super().__init__()
            def validation_step(self, batch, _):
                self.log("val_loss", self.loss(batch))
        LightningCLI(Model)
        """,
        "python train.py fit --model.lr {lr} --seed_everything {seed} --trainer.default_root_dir {folder} "
        "--trainer.logger CSVLogger --trainer.logger.save_dir {folder}",
    ),
    "tyro": (
        """
        from dataclasses import dataclass, field
        import tyro
        @dataclass
        class Optim:
            learning_rate: float = 1e-3
        @dataclass
        class Config:
            optim: Optim = field(default_factory=Optim)
            seed: int = 0
            output_dir: str = "out"
        tyro.cli(Config)
        """,
        "python train.py --optim.learning-rate {lr} --seed {seed} --output-dir {folder}",
    ),
    "typer": (
        """
        from typing import Annotated
        import typer
        def main(data: str, lr: float = 1e-3, seed: Annotated[int, typer.Option("--rng-seed")] = 0, out: str = "x"): ...
        typer.run(main)
        """,
        "python train.py {data} --lr {lr} --rng-seed {seed} --out {folder}",
    ),
    "click": (
        """
        import click
        @click.command()
        @click.option("--lr", default=1e-3)
        @click.option("--seed", type=int, default=1)
        @click.option("--out", "-o", "out_dir", default="runs")
        @click.option("--amp/--no-amp", default=False)
        def main(lr, seed, out_dir, amp): ...
        """,
        "python train.py --lr {lr} --seed {seed} --out {folder}",
    ),
    "fire": (
        """
        import fire
        def train(lr=1e-3, seed=0, *, out_dir="out"): ...
        fire.Fire(train)
        """,
        "python train.py --lr={lr} --seed={seed} --out_dir={folder}",
    ),
    "absl flags": (
        """
        from absl import app, flags
        flags.DEFINE_float("learning_rate", 1e-3, "peak")
        flags.DEFINE_integer("seed", 0, "")
        flags.DEFINE_string("workdir", None, "")
        """,
        "python train.py --learning_rate={lr} --seed={seed} --workdir={folder}",
    ),
    "argparse": (
        """
        import argparse, os
        p = argparse.ArgumentParser()
        p.add_argument("data")
        p.add_argument("--lr", "--learning-rate", type=float, default=1e-3)
        p.add_argument("--min-lr", type=float, default=1e-5)
        p.add_argument("--seed", type=int, default=0)
        p.add_argument("--save", default="model.pt")
        rank = int(os.environ.get("LOCAL_RANK", 0))
        """,
        "torchrun --standalone --nproc-per-node {workers} train.py {data} --learning-rate {lr} --seed {seed} "
        "--save {folder}/model.pt",
    ),
    "no command line": ("lr = 1e-3\n", "python train.py"),
}


def test_every_style_has_a_script_here() -> None:
    assert list(SCRIPTS) == [style.name for style in STYLES]


@pytest.mark.parametrize("name", SCRIPTS)
def test_styles(name: str, tmp_path: Path) -> None:
    """Checks the command and the grid, and that the study is valid or is refused because it still contains a TODO."""
    text, command = SCRIPTS[name]
    write(tmp_path, "x = 1\n", "configurator.py")
    write(tmp_path, "defaults: [{optim: adamw}, _self_]\nseed: 1\n", "conf/config.yaml")
    write(tmp_path, "lr: 1e-3\nbetas: [0.9, 0.95]\n", "conf/optim/adamw.yaml")
    script = write(tmp_path, dedent(text) + PRINTS)
    assert style_of(read_script(script, tmp_path)).name == name
    found = draft(script)
    assert found.trainer["command"] == command
    if name != "no command line":
        own = {"HfArgumentParser": 5e-5, "nanoGPT configurator": 6e-4}.get(name, 1e-3)
        assert found.own_lr == own
        assert found.lrs == lr_grid(own)
    assert found.trainer["metrics"] is not None
    content = study_text(found, "mine", tmp_path)
    if name in ("HfArgumentParser", "typer", "argparse", "no command line"):
        assert not found.is_complete
        assert content.count("TODO") == 1
        with pytest.raises(InvalidInput) as refused:
            Study.parse(content)
        assert "trainer.command" in str(refused.value)
    else:
        assert found.is_complete
        assert Study.parse(content).lrs == found.lrs


def test_the_grid_is_around_the_scripts_own_value() -> None:
    assert lr_grid(6e-4) == (6e-5, 2e-4, 6e-4, 2e-3, 6e-3)
    assert lr_grid(1e-3) == (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    assert lr_grid(5e-5) == (5e-6, 1.7e-5, 5e-5, 1.5e-4, 5e-4)


def test_the_identity_consists_of_local_modules_and_configurations(tmp_path: Path) -> None:
    write(tmp_path, "from .layers import x\n", "net/__init__.py")
    write(tmp_path, "x = 1\n", "net/layers.py")
    write(tmp_path, "seed: 1\n", "conf/config.yaml")
    write(tmp_path, "not python at all (\n", "broken.py")
    script = write(tmp_path, "import torch, net, broken\nimport os.path\n" + dedent(SCRIPTS["Hydra"][0]))
    assert draft(script).trainer["identity"] == ["train.py", "net/__init__.py", "net/layers.py", "conf/config.yaml"]


def test_a_script_below_the_working_directory(tmp_path: Path) -> None:
    script = write(tmp_path, "import helper\n" + dedent(SCRIPTS["argparse"][0]), "scripts/train.py")
    write(tmp_path, "x = 1\n", "helper.py")
    sources = read_script(script, tmp_path)
    style = style_of(sources)
    found = draft_command(sources, style, style.read(sources), start_directory(sources, tmp_path))
    assert " scripts/train.py " in found.trainer["command"]
    assert found.trainer["identity"] == ["scripts/train.py", "helper.py"]
    nano = write(tmp_path, SCRIPTS["nanoGPT configurator"][0], "nano/train.py")
    write(tmp_path, "x = 1\n", "nano/configurator.py")
    assert start_directory(read_script(nano, tmp_path), tmp_path) == nano.parent


def test_a_script_elsewhere_is_started_in_its_own_folder(tmp_path: Path) -> None:
    script = write(tmp_path, SCRIPTS["argparse"][0], "my code/train.py")
    sources = read_script(script, tmp_path / "elsewhere")
    directory = start_directory(sources, tmp_path / "elsewhere")
    assert directory == script.parent
    style = style_of(sources)
    found = draft_command(sources, style, style.read(sources), tmp_path)
    assert "'my code/train.py'" in found.trainer["command"]


def test_a_script_with_several_commands(tmp_path: Path) -> None:
    text = """
    import typer
    app = typer.Typer()
    @app.command()
    def train_model(lr: float = 1e-3): ...
    @app.command()
    def sample(n: int = 1): ...
    """
    found = draft(write(tmp_path, text))
    blocking = {missing.what: missing.how for missing in found.missing if missing.blocks}
    assert "train-model, sample" in blocking["subcommand"]


def test_the_style_is_that_of_the_library_that_declares_the_arguments(tmp_path: Path) -> None:
    script = write(tmp_path, "import click, hydra\n" + dedent(SCRIPTS["argparse"][0]))
    assert style_of(read_script(script, tmp_path)).name == "argparse"


RESUME: dict[str, tuple[str, str | None]] = {
    "switch": ('p.add_argument("--resume", action="store_true")', "--resume"),
    "choice": ('p.add_argument("--init_from", choices=["scratch", "resume"])', "--init_from resume"),
    "compared": ('p.add_argument("--init_from", default="scratch")\nif args.init_from == "resume": pass',
                 "--init_from resume"),
    "snapshot": ('p.add_argument("--snapshot_path", default="snap.pt")', "--snapshot_path {folder}/snap.pt"),
    "by itself": ('p.add_argument("--out_dir")\ntrainer.fit(m, ckpt_path="last")', "--out_dir {folder}"),
    "path": ('p.add_argument("--out_dir")\np.add_argument("--resume", default="", type=str)', None),
    "none": ("", None),
}  # fmt: skip


@pytest.mark.parametrize("name", RESUME)
def test_resume(name: str, tmp_path: Path) -> None:
    text, words = RESUME[name]
    found = draft(write(tmp_path, 'import argparse\np.add_argument("--lr", default=0.1)\n' + text))
    assert found.trainer["resume"] == words
    assert ("resume" in {missing.what for missing in found.missing}) == (words is None)


def test_notes_for_the_user(tmp_path: Path) -> None:
    text = """
    import argparse, torch
    p.add_argument("--lr", type=float)
    p.add_argument("--min_lr", default=1e-5)
    torch.save(model, "model.pt")
    """
    found = draft(write(tmp_path, text))
    assert {missing.what for missing in found.missing} == {
        "lrs",
        "min_lr",
        "metrics",
        "seed",
        "output folder",
        "resume",
    }
    content = study_text(found, "mine", tmp_path)
    assert content.count("TODO") == 1
    assert "# TODO: metrics" in content
    assert yaml.safe_load(content)["seeds"] == 1


def test_factors_are_comments_that_are_yaml_once_uncommented(tmp_path: Path) -> None:
    text = """
    import argparse
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--weight-decay", type=float, default=1e-4)
    p.add_argument("--dropout", type=float, default=0.2)
    p.add_argument("--optimizer", choices=["adamw", "muon"])
    """
    lines = study_text(draft(write(tmp_path, text)), "mine", tmp_path).splitlines()
    first = lines.index("# factors:")
    factors = yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines[first:]))["factors"]
    assert factors == {"weight_decay": [0.0, 1e-4], "dropout": [0.0, 0.2], "optimizer": ["adamw", "muon"]}
    assert "# --weight-decay {weight_decay}" in lines[first + 1]


def test_python_object(tmp_path: Path) -> None:
    text = """
    class Trial:
        def setup(self, context): ...
        def train(self, cell, report, checkpoint):
            return fit(cell.lr, cell.factors["alpha"])
    """
    script = write(tmp_path, text, "pkg/mine.py")
    found = draft_trial(read_script(script, tmp_path), tmp_path)
    assert found is not None
    assert found.trainer == {"python": "pkg.mine:Trial", "identity": ["pkg/mine.py"]}
    assert found.required_factors == ("alpha",)
    assert yaml.safe_load(study_text(found, "mine", tmp_path))["factors"] == {"alpha": []}


HELP = """usage: train.py [-h] [--lr LR]

options:
  -h, --help            show this help message and exit
  --lr LR, --learning_rate LR
                        peak (default: 0.001)
  --schedule {cosine,linear}
                        decay (default: cosine)
  -b N, --batch-size N
  --tied                tie embeddings (default: False)
"""
RICH = """
╭─ Options ───────────────────────────────────────────────────────────╮
│ *  --data                TEXT   [required]                          │
│    --lr                  FLOAT  Peak. [default: 0.0003]             │
│    --resume  --no-resume        [default: no-resume]                │
╰─────────────────────────────────────────────────────────────────────╯
"""
ABSL = """
train.py:
  --learning_rate: Peak learning rate.
    (default: '0.003')
    (a number)
  --[no]resume: Continue.
    (default: 'false')
"""


def test_help_texts() -> None:
    arguments = {argument.flag: argument for argument in from_help(HELP)}
    assert list(arguments) == ["--learning_rate", "--schedule", "--batch-size", "--tied"]
    assert arguments["--learning_rate"].default == 0.001
    assert arguments["--schedule"].choices == ("cosine", "linear")
    assert [flag for flag, argument in arguments.items() if argument.is_switch] == ["--tied"]
    rich = {argument.flag: argument for argument in from_help(RICH)}
    assert list(rich) == ["--data", "--lr", "--resume"]
    assert rich["--data"].required
    assert (rich["--lr"].default, rich["--lr"].kind) == (0.0003, "float")
    assert rich["--resume"].is_switch
    absl = {argument.flag: argument.default for argument in from_help(ABSL, "=")}
    assert absl["--learning_rate"] == 0.003
    config = {argument.flag: argument for argument in from_config("optim:\n  lr: 1e-3\ndata: ???\n")}
    assert config["optim.lr"].default == 0.001
    assert config["data"].required
    assert from_config("Traceback: [") == ()


def test_help_says_what_exists_and_the_source_says_the_defaults() -> None:
    text = [
        Argument(flag="--lr", default=0.1, kind="float"),
        Argument(flag="--gone"),
        Argument(flag="data", separator=""),
    ]
    shown = [Argument(flag="--lr"), Argument(flag="--seed", default=42)]
    merged = {argument.flag: argument.default for argument in merge(text, shown)}
    assert merged == {"data": None, "--lr": 0.1, "--seed": 42}
    assert merge(text, []) == tuple(text)


def test_names() -> None:
    assert default_name(Path("/a/My Project/train.py")) == "my-project"
    assert default_name(Path("/a/b/run_clm.py")) == "run_clm"


@pytest.mark.parametrize("text", ["print 'python 2'\n", "#!/bin/bash\nexport A=1\n", "\0"])
def test_files_that_are_not_python_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_script(write(tmp_path, text), tmp_path)
    assert refused.value.field == "script"
    with pytest.raises(InvalidInput):
        read_script(tmp_path / "absent.py", tmp_path)

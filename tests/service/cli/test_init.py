"""``oec init`` as a command, with scripts that answer ``--help``, hang, crash, or would start to train."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from search_spaces.study import Study
from service.cli import init as module
from tests.service.oec import invoked
from trainers.command.process import kill_marked

ANSWERS = """
    import argparse, json, os
    p = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    names = {"learning_rate": 3e-4, "weight_decay": 0.1}   # no call of add_argument names them
    for name, default in names.items():
        p.add_argument("--" + name, type=float, default=default, help="set it")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out_dir", default="out")
    args = p.parse_args()
    open("trained", "w").write("yes")
    with open(os.path.join(args.out_dir, "log.jsonl"), "a") as file:
        file.write(json.dumps({"step": 1, "val_loss": 2.0}))
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    path = tmp_path / "mine.py"
    path.write_text(dedent(ANSWERS), encoding="utf-8")
    return path


def test_a_study_is_written_and_is_valid(script: Path, tmp_path: Path) -> None:
    """Two of the arguments can only be found through --help."""
    done = invoked("init", "mine.py", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "trained").exists()
    for part in ("--learning_rate  (default 0.0003)", "--seed", "--out_dir", "mine.py", "oec plan study.yaml"):
        assert part in done.stdout
    study = Study.load(str(tmp_path / "study.yaml"))
    assert study.name == "mine"
    assert study.trainer is not None
    assert study.trainer.command == "python mine.py --learning_rate {lr} --seed {seed} --out_dir {folder}"
    assert study.lrs == (3e-5, 1e-4, 3e-4, 9e-4, 3e-3)
    assert "#   weight_decay: [0.0, 0.1]  # --weight_decay {weight_decay}" in (tmp_path / "study.yaml").read_text()


def test_a_study_in_another_folder(script: Path, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    assert invoked("init", "mine.py", "--out", "studies/a.yaml", "--name", "a", home=tmp_path / "home").returncode == 0
    study = Study.load(str(tmp_path / "studies" / "a.yaml"))
    assert study.trainer is not None
    assert study.trainer.directory == str(tmp_path)


def test_a_file_is_only_overwritten_with_force(script: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.yaml"
    out.write_text("precious")
    refused = invoked("init", "mine.py", home=tmp_path / "home")
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert out.read_text() == "precious"
    assert invoked("init", "mine.py", "--force", home=tmp_path / "home").returncode == 0
    assert Study.load(str(out)).name == "mine"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("absent.py",), ("script", "absent.py", "does not exist")),
        (("folder",), ("script", "folder", "cannot be read")),
        (("mine.py", "--name", "Not Valid"), ("--name", "Not Valid", "is not a valid name")),
        (("mine.py", "--out", "no/such/folder/study.yaml"), ("--out", "cannot be written", "give another file")),
        (("crashes.py",), ("script", "--help ended with exit code 1 (RuntimeError: boom)", "declares no arguments")),
        (("train.sh",), ("script", "train.sh", "is not Python: line 2")),
    ],
)
def test_bad_input(arguments: tuple[str, ...], parts: tuple[str, ...], script: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "crashes.py").write_text("import tyro_like\nimport click\nraise RuntimeError('boom')\n")
    (tmp_path / "tyro_like.py").write_text("")
    (tmp_path / "train.sh").write_text("#!/bin/sh\nexec torchrun train.py\n")
    done = invoked("init", *arguments, home=tmp_path / "home")
    assert done.returncode == 2, done.stdout
    for part in parts:
        assert part in done.stderr
    assert not (tmp_path / "study.yaml").exists()


def test_the_source_is_enough_if_help_crashes(script: Path, tmp_path: Path) -> None:
    script.write_text("import absent_package\nimport argparse\np.add_argument('--lr', type=float, default=0.1)\n")
    done = invoked("init", "mine.py", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "No module named 'absent_package'); is the script's environment active?" in done.stdout
    assert "--lr  (default 0.1)" in done.stdout


def test_a_script_that_would_train_is_not_started(script: Path, tmp_path: Path) -> None:
    script.write_text("open('trained', 'w')\nlr = 1e-3\nprint(f'step {1} val loss {2}')\n")
    done = invoked("init", "mine.py", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "trained").exists()
    assert "complete it where it says TODO" in done.stdout


def test_help_that_hangs_is_killed_with_its_child_processes(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a child process that ignores SIGTERM and keeps the output open."""
    monkeypatch.setattr(module, "HELP_SECONDS", 2)
    monkeypatch.setenv("OEC_TEST_HANGS", str(tmp_path))
    script.write_text(
        dedent("""
        import argparse, signal, subprocess, sys, time
        p.add_argument("--lr", type=float, default=0.1) if False else None
        subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600"])
        time.sleep(600)
        """)
    )
    done = invoked("init", "mine.py", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "--help did not end within 2 s" in done.stdout
    monkeypatch.delenv("OEC_TEST_HANGS")
    assert kill_marked(f"OEC_TEST_HANGS={tmp_path}".encode()) == [], "processes started by --help are still running"


def test_a_launcher_that_is_not_installed(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = invoked("init", "mine.py", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "launcher: python is not on PATH" in done.stdout

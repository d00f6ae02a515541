"""Terminal encodings that lack a character, invalid paths, and data in oddly named folders."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from search_spaces.errors import InvalidInput, expand, printable
from search_spaces.study import Study
from service.cli.commands import main
from service.cli.options import STUDY_NAME, wrap
from service.cluster.working_dir import WorkingDir
from tests.service.oec import OEC, environment, invoked, oec

RUNS = "scale,method,gamma,lr,seed,val_loss\n9M,lion,,0.1,1,3\n9M,lion,,0.2,1,2.5\n9M,lion – ≥,,0.2,1,4\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "cp437"])
@pytest.mark.parametrize("arguments", [("methods",), ("report", "runs.csv", "--format", "html"), ("plan", "smoke")])
def test_a_character_that_the_encoding_lacks_is_replaced(
    tmp_path: Path, encoding: str, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "runs.csv").write_text(RUNS, encoding="utf-8")
    variables = environment(tmp_path / "home", PYTHONIOENCODING=encoding)
    done = subprocess.run([OEC, *arguments], capture_output=True, cwd=tmp_path, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding)
    if arguments[0] == "report":
        page = (tmp_path / "home" / "reports" / "runs" / "report.html").read_text(encoding="utf-8")
        assert "lion – ≥" in page, "files must be UTF-8, regardless of the terminal's encoding"


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale(tmp_path: Path) -> None:
    """Python can be told to warn about every such access."""
    (tmp_path / "runs.csv").write_text(RUNS, encoding="utf-8")
    for arguments in (("plan", "smoke"), ("report", "runs.csv", "--format", "html"), ("diff", "runs.csv", "published")):
        done = oec(*arguments, home=tmp_path / "home", cwd=tmp_path, PYTHONWARNDEFAULTENCODING="1")
        assert done.returncode == 0, done.stderr
        ours = [line for line in done.stderr.splitlines() if "EncodingWarning" in line and "site-packages" not in line]
        assert ours == []


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a" * 300, "a\0b"])
def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidInput, match="is not a valid path"):
        expand(path, "--home")
    for arguments in (("plan", "smoke", "--home", path), ("data", "prepare", path)):
        assert invoked(*arguments, home=tmp_path / "home").returncode == 2
    content = yaml.safe_load(Study.load("smoke").to_yaml()) | {"name": "mine"}
    for data in ({"source": "text", "path": path}, {"source": "shards", "path": path, "validation": path}):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content | {"data": data}))
        assert invoked("plan", tmp_path / "mine.yaml", home=tmp_path / "home").returncode == 2


def test_an_invalid_glob_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load(Study.load("smoke").to_yaml()) | {"name": "mine"}
    content["data"] = {"source": "shards", "path": str(tmp_path / "a**"), "validation": str(tmp_path / "b")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    done = invoked("plan", tmp_path / "mine.yaml", home=tmp_path / "home")
    assert done.returncode == 2
    assert "is not a valid glob" in done.stderr


@pytest.mark.parametrize("name", ["sp ace", "br[x]y", "sta*r", "qu?est", "ha#sh", "per%41cent", "new\nline", "é漢"])
def test_a_home_with_an_unusual_name_holds_its_data(tmp_path: Path, name: str) -> None:
    """It also holds token files that were prepared in it and that a study reads."""
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 500)
    (tmp_path / "cwd").mkdir()
    home = tmp_path / name
    done = invoked("plan", "smoke", home=home)
    assert done.returncode == 0, done
    options = ("--tokenizer", "bytes", "--val-tokens", 5000)
    done = invoked("data", "prepare", tmp_path / "a.txt", *options, home=home)
    assert done.returncode == 0, done
    data = yaml.safe_load(done.stdout[done.stdout.index("data: ") :])["data"]
    training = {"steps": 2, "sequence_length": 32, "eval_sequences": 2, "warmup_steps": 1, "batch_size": 2}
    content = yaml.safe_load(Study.load("smoke").to_yaml()) | {"name": "mine", "data": data, "training": training}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    done = invoked("plan", tmp_path / "mine.yaml", home=home)
    assert done.returncode == 0, done
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "cwd", "mine.yaml", name}


def test_a_report_on_an_experiment_of_any_name_is_written_into_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Databricks experiments have names that look like absolute paths."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/ml.db"
    client = MlflowClient(uri)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name in (f"{tmp_path}/Users/me", "../up", ".."):
        experiment = client.create_experiment(name, artifact_location=str(tmp_path / "artifacts"))
        run = client.create_run(experiment).info.run_id
        client.log_param(run, "lr", 0.1)
        client.log_metric(run, "val_loss", 3.0)
        client.set_terminated(run)
        columns = ("--column=scale==9M", "--column=method==lion", "--column=seed==1")
        done = invoked(
            "report", f"mlflow:{name}", *columns, "--format=html", home=tmp_path / "home", MLFLOW_TRACKING_URI=uri
        )
        assert done.returncode == 0, done
    assert {path.name for path in tmp_path.iterdir()} == {"cwd", "home", "ml.db"}
    assert not list((tmp_path / "cwd").iterdir())
    assert len(list((tmp_path / "home" / "reports").glob("*/report.html"))) == 3


def test_a_working_directory_with_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.py")
    (tmp_path / name).touch()
    with pytest.raises(InvalidInput, match=r"caf\\udce9.py' is not valid UTF-8"):
        WorkingDir.scan(tmp_path, max_megabytes=1)
    (tmp_path / ".rayignore").write_bytes(b"caf*\n# \xff\n")
    assert WorkingDir.scan(tmp_path, max_megabytes=1).sizes.keys() == {Path(".rayignore")}


def test_printable() -> None:
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"
    assert printable("café – ≥") == "café – ≥"


def test_lines_on_a_terminal_break_between_words() -> None:
    text = "the shipped studies are demo, gamma and short; see /a-path/that-is/longer-than-the/terminal"
    assert wrap(text, 40).split("\n") == [
        "the shipped studies are demo, gamma and",
        "short; see",
        "/a-path/that-is/longer-than-the/terminal",
    ]
    assert wrap("short\n  indented", 40) == "short\n  indented"


def test_every_command_has_a_line_in_the_help() -> None:
    """The help has 80 columns, and click must not truncate a line."""
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(main, ["--help"]).output
    for name, command in main.commands.items():
        assert re.search(rf"^  {name} +{re.escape(command.short_help or 'no short_help')}$", shown, re.MULTILINE), name


def test_a_study_in_the_home_can_be_given_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(Study.load("smoke").to_yaml())
    assert STUDY_NAME.convert(str(tmp_path / "file.yaml"), None, None) == "smoke"
    for name in ("smoke", str(tmp_path / "gone.yaml"), "runs.csv"):
        assert STUDY_NAME.convert(name, None, None) == name


def test_methods_fit_a_terminal() -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(main, ["methods"]).output
    assert "…" not in shown, "a definition is truncated"
    assert max(map(len, shown.splitlines())) <= 80

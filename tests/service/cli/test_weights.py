"""``oec analyze`` and ``oec clean`` on a home with kept weights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from search_spaces.plan import Plan
from search_spaces.record import CellResult
from service.home.ledger import Ledger
from service.home.location import open_home
from service.home.studies import register_study
from tests.service.keeping import T, V, shards, study_of, train
from tests.service.oec import invoked
from tests.stores import Store, store
from trainers import checkpoint, diagnostics
from trainers.data import Tokens, write_shard
from trainers.rows import read


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    torch.set_num_threads(1)
    return shards(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def trained(tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "home"
    train(open_home(folder), study_of(), tokens)
    return folder


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """Returns a copy of the home that the test may change."""
    return Path(shutil.copytree(trained, tmp_path / "home"))


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stdout
    (message,) = result.stderr.splitlines()
    for word in words:
        assert word in message, message


def tables(home: Path, study: str = "kept") -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_csv(path) for path in (home / "studies" / study / "analysis").glob("*.csv")}


def cells(home: Path, study: str = "kept") -> dict[str, Path]:
    return {path.name: path for path in (home / "studies" / study / "cells").iterdir()}


def test_tables_and_figures_of_a_study_go_into_its_report(home: Path) -> None:
    printed = done(invoked("analyze", "kept", home=home))
    assert printed.count("baseline") == printed.count("mu-centering") == 2
    found = tables(home)["embeddings"].set_index(["cell", "embedding"])
    assert len(found) == 2 * 4, "expected output and input embedding of four cells"
    for cell_id, folder in cells(home).items():
        last = read(folder / "metrics.jsonl")[-1]
        for which in ("output", "input"):
            row = found.loc[(cell_id, which)]
            for name in (*diagnostics.EMBEDDING[:8], *(["b_ratio"] if which == "output" else [])):
                of_mu = "mu" in name or name in ("b_ratio", "ratio_norm")
                if row["mu_norm"] > 1e-6 or not of_mu:  # after centering, mu is only rounding
                    assert row[name] == pytest.approx(last.metrics[f"{which}_{name}"], rel=1e-3), (cell_id, which, name)
    report = home / "studies" / "kept" / "report"
    assert (report / "tables" / "embeddings.csv").is_file()
    page = (report / "report.html").read_text()
    weights = json.loads(re.search(r'id="weights">(.*?)</script>', page).group(1))
    assert list(weights) == [
        "Rows of the output embedding along mu",
        "Norms of the rows of the output embedding",
        "Singular values of the output embedding",
    ]
    assert all(set(figure["cells"]) == set(cells(home)) for figure in weights.values())
    assert "B-ratio of the output embedding" in page
    done(invoked("report", "kept", "--format", "html", "--format", "svg", home=home))
    drawn = {path.stem for path in (report / "figures").glob("*.svg")}
    assert drawn >= {"b-ratio", "e-mu-tiny", "singular-values-tiny"}
    assert '"weights">{}' not in (report / "report.html").read_text(), (
        "the weights must be in other reports of the study too"
    )


def test_on_its_validation_tokens_the_loss_equals_that_of_the_run(home: Path, tokens: Tokens) -> None:
    (validation,) = tokens.validation.paths
    printed = done(invoked("analyze", "kept", "--shards", validation, "--data", "its own", home=home))
    assert printed.count("its own") == 4
    losses = tables(home)["losses"]
    # The memory alignment of a matrix affects the last digits of a product.
    assert losses["loss"].tolist() == pytest.approx(losses["val_loss"].tolist(), rel=1e-6)
    assert set(losses["tokens"]) == {8 * T}
    assert set(losses["digest"]) == {tokens.validation.digest[:16]}


def test_on_other_tokens_the_loss_differs_and_earlier_results_are_kept(home: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "zeros.bin", np.zeros(2000, dtype=np.uint16))
    write_shard(tmp_path / "ones.bin", np.ones(2000, dtype=np.uint16))
    first, second, *_ = cells(home)
    for name in ("zeros", "ones"):
        done(invoked("analyze", "kept", "--cell", first, "--shards", tmp_path / f"{name}.bin", home=home))
    twice = tmp_path / "zeros.bin"
    done(invoked("analyze", "kept", "--cell", first, "--shards", twice, "--sequences", 3, home=home))
    done(invoked("analyze", "kept", "--cell", second, home=home))
    found = tables(home)
    assert found["losses"][["cell", "tokens"]].to_numpy().tolist() == [[first, 8 * T], [first, 3 * T]]
    assert (found["losses"]["loss"] != found["losses"]["val_loss"]).all()
    assert sorted(found["embeddings"]["cell"]) == sorted([first, first, second, second])
    assert found["histograms"].groupby(["cell", "what"])["rows"].sum().tolist() == [V] * 4


def test_every_step_that_was_kept(tokens: Tokens, tmp_path: Path) -> None:
    train(open_home(tmp_path), study_of(lrs=[1e-2], methods=["baseline"], keep_weights={"every": 2}), tokens)
    assert "step" in done(invoked("analyze", "kept", home=tmp_path))
    output = tables(tmp_path)["embeddings"].query("embedding == 'output'")
    assert output["step"].tolist() == [2, 4, 6]
    assert output["mu_norm"].nunique() == 3


def test_weights_of_cells_that_another_study_trained(home: Path, tokens: Tokens) -> None:
    """The second study keeps no weights; the first one trained all of its cells."""
    place, study = open_home(home), study_of("again", keep_weights="none")
    register_study(place, study)
    with Ledger(place.ledger("again"), "again", write=True) as ledger:
        ledger.plan(Plan(study, tokens.digest).cells)
        for cell in ledger.missing():
            ledger.end(cell.id, CellResult(state="finished", val_loss=5.0, l_init=6.0), reused_from="kept")
    done(invoked("analyze", "again", home=home))
    assert set(tables(home, "again")["embeddings"]["cell"]) == set(cells(home))


def test_damaged_weights_are_named_and_the_others_analyzed(home: Path) -> None:
    broken = next(iter(cells(home).values())) / "weights" / "step-00000006.safetensors"
    broken.write_bytes(broken.read_bytes()[:-3])
    torn = list(cells(home).values())[1] / "weights" / "step-00000006.json"
    torn.write_text(torn.read_text()[:50])
    printed = done(invoked("analyze", "kept", home=home))
    assert f"weights {broken} skipped: its content does not match its SHA-256" in printed
    assert f"weights {torn.with_suffix('.safetensors')} skipped: its JSON file is torn" in printed
    assert tables(home)["embeddings"]["cell"].nunique() == 2


def test_what_cannot_be_analyzed(home: Path, tokens: Tokens, tmp_path: Path) -> None:
    place = open_home(tmp_path / "none")
    train(place, study_of(methods=["baseline"], lrs=[1e-2], keep_weights="none"), tokens)
    refused(invoked("analyze", "kept", home=place.path), "'kept' has no kept weights", "keep_weights: last")
    refused(invoked("analyze", "other", home=home), "'other' is not a study of")
    refused(invoked("analyze", "kept", "--cell", "abc", home=home), "--cell: 'abc' is not a cell of kept")
    refused(invoked("analyze", home=home), "STUDY", "is missing")
    refused(invoked("analyze", "kept", "--weights", "x", home=home), "cannot be combined with --weights")
    refused(invoked("analyze", "kept", "--out", "x", home=home), "--out", "requires --weights")
    refused(invoked("analyze", "--weights", "x", "--cell", "a", home=home), "--cell", "requires a study")
    refused(invoked("analyze", "kept", "--sequences", 3, home=home), "--shards", "is missing")
    refused(invoked("analyze", "kept", "--shards", tmp_path / "*.bin", home=home), "--shards", "matches no file")
    write_shard(tmp_path / "wide.bin", np.full(1000, V, dtype=np.uint16))
    refused(
        invoked("analyze", "kept", "--shards", tmp_path / "wide.bin", home=home), "--shards", f"vocabulary size of {V}"
    )
    write_shard(tmp_path / "few.bin", np.zeros(5 * T + 1, dtype=np.uint16))
    refused(invoked("analyze", "kept", "--shards", tmp_path / "few.bin", home=home), "5 sequences", "8 are required")


def test_files_from_anywhere(home: Path, tmp_path: Path) -> None:
    ours = next(iter(cells(home).values())) / "weights" / "step-00000006.safetensors"
    E_VD = load_file(ours)["lm_head.weight"]
    theirs = tmp_path / "theirs.safetensors"
    save_file({"transformer.wte.weight": E_VD + 1, "lm_head.embedding.weight": E_VD.bfloat16()}, theirs)
    printed = done(invoked("analyze", "--weights", ours, "--weights", theirs, "--out", tmp_path / "out", home=home))
    assert "step-00000006" in printed
    assert "theirs" in printed
    found = pd.read_csv(tmp_path / "out" / "embeddings.csv").set_index(["cell", "embedding"])
    output = found.xs("output", level="embedding")
    assert output.loc["theirs", "b_ratio"] == pytest.approx(output.loc["step-00000006", "b_ratio"], rel=0.02)
    assert found.loc[("theirs", "input"), "mu_norm"] > 1
    assert (tmp_path / "out" / "figures" / "e-mu-theirs.png").is_file()
    assert (tmp_path / "out" / "tables" / "embeddings.md").is_file()
    refused(invoked("analyze", "--weights", tmp_path / "no.safetensors", home=home), "--weights", "cannot be read")
    refused(invoked("analyze", "--weights", theirs, "--embedding", "x", home=home), "--embedding", "wte.weight")
    refused(invoked("analyze", "--weights", theirs, "--weights", theirs, home=home), "--weights", "given twice")


def files(home: Path) -> set[str]:
    return {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}


def test_clean_lists_files_and_removes_nothing_without_yes(home: Path) -> None:
    before = files(home)
    size = sum(path.stat().st_size for path in home.rglob("weights/*"))
    for options in ([], ["--weights"]):
        printed = done(invoked("clean", "kept", *options, home=home))
        assert re.search(r"kept +│ kept weights +│ 4 +│ 8 ", printed)
        assert f"nothing was removed; to free {size / 1e6:.1f} MB, run `oec clean kept --weights --yes`" in printed
    assert files(home) == before
    refused(invoked("clean", "kept", "--yes", home=home), "--yes", "requires a kind of files to remove", "--weights")


def test_clean_removes_only_weights(home: Path) -> None:
    done(invoked("analyze", "kept", home=home))
    before = files(home)
    assert "removed: " in done(invoked("clean", "kept", "--weights", "--yes", home=home))
    assert before - files(home) == {name for name in before if "/weights/" in name}
    assert not list(home.rglob("weights"))
    assert "study kept has no kept weights" in done(invoked("clean", "kept", "--weights", home=home))
    refused(invoked("analyze", "kept", home=home), "has no kept weights")
    done(invoked("report", "kept", "--only", "e-mu-*", "--format", "svg", home=home))  # works from the tables


def test_clean_removes_checkpoints_from_which_nothing_resumes(home: Path) -> None:
    first, second, third, fourth = cells(home).values()
    place = open_home(home)
    for folder in (first, second, third, home / "studies/kept/cells/gone", home / "cells/alone"):
        checkpoint.save(folder / "checkpoints", folder.name, 3, {}, {})
    (home / "cells" / "alone" / "weights").mkdir()
    (home / "cells" / "alone" / "weights" / "step-00000003.safetensors").write_bytes(b"12345")
    lines = place.ledger("kept").read_text().splitlines()
    kept = [line for line in lines if second.name not in line or '"planned"' in line]  # as if interrupted
    crashed = [line.replace('"finished"', '"crashed"') if third.name in line else line for line in kept]
    renumbered = [re.sub(r'"seq":\d+', f'"seq":{n}', line) for n, line in enumerate(crashed, start=1)]
    place.ledger("kept").write_text("".join(f"{line}\n" for line in renumbered))
    printed = done(invoked("clean", home=home))
    assert re.search(r"kept +│ checkpoints of ended cells +│ 2 +│ 4 ", printed)
    assert re.search(r"\(oec train\) +│ kept weights +│ 1 +│ 1 +│ 5 bytes", printed)
    assert "`oec clean --weights --checkpoints --yes`" in printed
    done(invoked("clean", "--checkpoints", "--yes", home=home))
    left = {path.parts[-3] for path in home.rglob("checkpoints/*.json")}
    assert left == {second.name, third.name, "alone"}, (
        "checkpoints must stay if a cell can resume or be retried, or if its state is unknown"
    )
    assert len(list(home.rglob("weights/*.json"))) == 4
    assert fourth.is_dir()


def test_a_running_study_is_not_cleaned(home: Path) -> None:
    place, before = open_home(home), files(home)
    with Ledger(place.ledger("kept"), "kept", write=True):
        refused(invoked("clean", "kept", "--weights", "--yes", home=home), "is being run by another process")
        assert "nothing was removed" in done(invoked("clean", "kept", home=home))
    assert files(home) == before


def test_clean_does_not_follow_links_out_of_the_home(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (home / "studies" / "kept" / "cells").rename(elsewhere)
    (home / "studies" / "kept" / "cells").symlink_to(elsewhere)
    before = files(elsewhere)
    refused(invoked("clean", "kept", "--weights", "--yes", home=home), "leads out of the home")
    assert files(elsewhere) == before


def test_the_plan_shows_the_size_of_kept_weights(home: Path, tmp_path: Path) -> None:
    for keep, files_a_cell in (("last", 1), ({"every": 2}, 3), ("none", 0)):
        path = tmp_path / "kept.yaml"
        path.write_text(study_of(keep_weights=keep, data={"tokenizer": "bytes"}).to_yaml())
        printed = done(invoked("plan", path, home=home))
        assert ("keep_weights: " in printed) == bool(files_a_cell)
        if files_a_cell:
            found = float(re.search(r"keep_weights: at most ([\d.]+) MB", printed).group(1))
            kept = list(home.rglob("weights/*.safetensors"))
            assert found == pytest.approx(files_a_cell * sum(file.stat().st_size for file in kept) / 1e6, rel=0.1)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Store:
    with store("s3", tmp_path_factory.mktemp("store")) as made:
        yield made


def test_a_home_in_a_bucket(s3: Store, tokens: Tokens, tmp_path: Path) -> None:
    """The cells are trained on one machine, analyzed on another, and cleaned on a third; the machines only share the
    bucket."""
    url = s3.home()
    scratch = {"OEC_SCRATCH": str(tmp_path / "first")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OEC_SCRATCH", scratch["OEC_SCRATCH"])
        place = open_home(url)
        train(place, study_of(lrs=[1e-2]), tokens)
    bucket = place.bucket
    assert bucket is not None
    kept = {name for name in bucket.names() if "/weights/" in name}
    assert len(kept) == 4
    assert not list((tmp_path / "first").rglob("*.safetensors")), "the training machine must not keep weights"
    done(invoked("analyze", "kept", home=url, OEC_SCRATCH=str(tmp_path / "second")))
    assert not list((tmp_path / "second").rglob("*.safetensors"))
    assert {f"studies/kept/analysis/{name}.csv" for name in ("embeddings", "losses")} <= set(bucket.names())
    assert "studies/kept/report/report.html" in bucket.names()
    third = {"OEC_SCRATCH": str(tmp_path / "third")}
    done(invoked("report", "kept", "--format", "html", home=url, **third))
    (page,) = (tmp_path / "third").rglob("report.html")
    assert '"Rows of the output embedding along mu"' in page.read_text()
    assert "4 " in done(invoked("clean", "kept", home=url, **third))
    done(invoked("clean", "kept", "--weights", "--yes", home=url, **third))
    assert not [name for name in bucket.names() if "/weights/" in name]
    refused(invoked("analyze", "kept", home=url, **third), "has no kept weights")

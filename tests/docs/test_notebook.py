"""Executes docs/results.ipynb on the published runs and on a study that a test has trained."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.blocks import ROOT

NOTEBOOK = ROOT / "docs" / "results.ipynb"


def test_it_is_committed_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs"), (
            "clear the outputs: they contain details of this machine and bloat the repository"
        )
        assert cell.get("execution_count") is None


def test_it_reads_the_published_runs_and_a_trained_study(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs it like Jupyter, in the notebook's own folder, with the home that `make demo` leaves next to it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path / "docs"
    folder.mkdir()
    (tmp_path / "oec-home").symlink_to(trained)
    monkeypatch.delenv("OEC_HOME", raising=False)
    monkeypatch.setenv("OEC_STUDY", "first")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=place).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    tables = [output["data"]["text/plain"] for output in shown if "text/html" in output.get("data", {})]
    charts = [output["data"]["image/png"] for output in shown if "image/png" in output.get("data", {})]
    assert len(charts) == 2
    assert "0.306" in tables[2], "the published LRS of the baseline at 16M is missing"
    assert [tables[-1].count(method) for method in ("baseline", "z-loss", "mu-centering")] == [1, 1, 1]
    assert not [output for output in shown if output["output_type"] == "stream"], "a cell prints something or warns"

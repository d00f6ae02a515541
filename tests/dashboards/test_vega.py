"""The script of a page: bundled once per user, or for every report if there is no cache."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dashboards import vega
from dashboards.vega import Script


def script() -> str:
    with Script() as made:
        return str(made.text())


def test_it_is_bundled_once_and_cannot_close_its_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    first = script()
    assert "window.vegaEmbed" in first
    assert "</script" not in first
    monkeypatch.setattr(vega, "CODE", "raise SystemExit(3)")
    assert script() == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        script()
    assert not list((tmp_path / "another").rglob("*.js"))


def test_a_read_only_cache_is_tolerated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "window.vegaEmbed" in script()
    assert (tmp_path / "file").read_bytes() == b""

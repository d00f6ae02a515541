"""Which cluster is joined, and Ray's token."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from search_spaces.errors import InvalidInput
from service.cluster.connection import ensure_private_token, resolve_address


def test_a_given_address_takes_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert resolve_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert resolve_address(None) == "10.0.0.1:6379"
    assert resolve_address("127.0.0.1:1") == "127.0.0.1:1"


@pytest.mark.parametrize("before", [None, "a token that Ray made"])
def test_rays_token_is_private_to_the_user(tmp_path, monkeypatch, before):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    if before:
        path.parent.mkdir()
        path.write_text(before)
        path.chmod(0o644)
    ensure_private_token()
    token = path.read_text()
    assert token == before if before else len(token) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    ensure_private_token()
    assert path.read_text() == token, "all processes of a user must share one token"


@pytest.mark.parametrize("home", ["missing/home", "file"])
def test_without_a_home_the_token_is_in_the_scratch_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # registers the variable that is set below, so that it is removed after the test
        monkeypatch.delenv(name)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setenv("OEC_SCRATCH", str(tmp_path / "scratch"))
    ensure_private_token()
    path = tmp_path / "scratch" / "ray_auth_token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(path)
    assert (len(path.read_text()), path.stat().st_mode & 0o777) == (64, 0o600)
    assert not (tmp_path / "missing").exists()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("OEC_SCRATCH", str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match="RAY_AUTH_TOKEN_PATH"):
        ensure_private_token()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_without_an_entry_in_the_user_database_has_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenShift runs containers as a random user, who has neither HOME nor an entry in the user database."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HOME"):
        monkeypatch.delenv(name, raising=False)
    scratch_folder = Path(tempfile.mkdtemp(prefix="oec-scratch-"))  # other users cannot enter pytest's folder
    monkeypatch.setenv("OEC_SCRATCH", str(scratch_folder))
    os.chown(scratch_folder, 4_000_123, 4_000_123)
    if not (child := os.fork()):
        code = 1
        try:
            os.setgid(4_000_123)
            os.setuid(4_000_123)
            ensure_private_token()
            code = 0 if os.environ["RAY_AUTH_TOKEN_PATH"] == str(scratch_folder / "ray_auth_token") else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len((scratch_folder / "ray_auth_token").read_text()) == 64
    shutil.rmtree(scratch_folder)


def test_a_token_from_the_environment_creates_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    ensure_private_token()
    assert not (tmp_path / ".ray").exists()

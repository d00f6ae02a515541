"""Which cluster is joined, and Ray's token."""

from __future__ import annotations

import pytest

from service.cluster.connection import ensure_private_token, resolve_address


def test_the_address_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert resolve_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert resolve_address(None) == "10.0.0.1:6379"
    assert resolve_address("127.0.0.1:1") == "127.0.0.1:1"


@pytest.mark.parametrize("before", [None, "a token that Ray made"])
def test_rays_token_is_this_users_alone(tmp_path, monkeypatch, before):
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
    assert path.read_text() == token, "one token for all that this user starts"


def test_a_token_from_the_environment_makes_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    ensure_private_token()
    assert not (tmp_path / ".ray").exists()

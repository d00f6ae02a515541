"""The tokens of the HTTP service, in ``<home>/service/tokens.json``, which is read again whenever it changes.

A token has 256 random bits. Its SHA-256 cannot be reversed by guessing, so it needs neither salt nor a slow hash. The
token itself is printed once, when it is created, and never stored.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import Field, TypeAdapter, ValidationError

from search_spaces.errors import InvalidInput
from search_spaces.frozen import Frozen
from search_spaces.study import is_name
from service.home.layout import Home
from trainers.storage.files import atomic_writer

Role = Literal["read", "run"]
"""``read`` allows reading only; ``run`` also allows submitting, stopping and resuming studies."""
PREFIX = "oec_"
"""Lets secret scanners recognize a leaked token."""


class Token(Frozen):
    """The stored record of a token."""

    name: str
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: datetime
    expires: datetime | None = None

    @property
    def is_expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


TOKENS = TypeAdapter(tuple[Token, ...])


@lru_cache(maxsize=1)
def _load(path: Path, version: object) -> tuple[Token, ...]:
    try:
        return TOKENS.validate_json(path.read_bytes())
    except ValidationError as error:
        remedy = "restore the file, or delete it and create new tokens with `oec token add`"
        raise InvalidInput("tokens", str(path), "is damaged", remedy) from error


class TokenFile:
    """The tokens of a home. Several processes may read and write the file concurrently."""

    def __init__(self, home: Home) -> None:
        self._path = home.service / "tokens.json"

    def all(self) -> tuple[Token, ...]:
        """The tokens in the file. Raises InvalidInput if it is damaged."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return ()
        return _load(self._path, (status.st_ino, status.st_mtime_ns, status.st_size))

    def authenticate(self, secret: str) -> Token | None:
        """Find the record of a token; None if it is unknown or has expired. Both take the same time."""
        digest = sha256_hex(secret)
        matches = [token for token in self.all() if hmac.compare_digest(token.sha256, digest)]
        return matches[0] if matches and not matches[0].is_expired else None

    def add(self, name: str, role: Role, days: int | None) -> str:
        """Create a token and return it. It cannot be read again later.

        Raises:
            InvalidInput: the name is not valid or is taken, or ``days`` is out of range.
        """
        if not is_name(name):
            raise InvalidInput("NAME", name, "is not a valid name", "use lower-case letters, digits, '.', '_' and '-'")
        if days is not None and not 0 < days < 36_500:
            raise InvalidInput("--days", days, "is not a valid lifetime", "give 1 to 36499 days, or omit it")
        secret = PREFIX + secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        with self._edit() as tokens:
            if any(token.name == name for token in tokens):
                remedy = f"use another name, or run `oec token remove {name}` first"
                raise InvalidInput("NAME", name, "already has a token", remedy)
            expires = None if days is None else now + timedelta(days=days)
            tokens.append(Token(name=name, role=role, sha256=sha256_hex(secret), created=now, expires=expires))
        return secret

    def remove(self, name: str) -> None:
        """Remove a token. Raises InvalidInput if there is none with this name."""
        with self._edit() as tokens:
            kept = [token for token in tokens if token.name != name]
            if len(kept) == len(tokens):
                names = ", ".join(token.name for token in tokens) or "none"
                raise InvalidInput("NAME", name, "has no token", f"existing tokens: {names}")
            tokens[:] = kept

    @contextmanager
    def _edit(self) -> Iterator[list[Token]]:
        """Yield the tokens for changes in place, and save them unless the block raises; one process at a time."""
        with FileLock(self._path.with_suffix(".lock")):
            tokens = list(self.all())
            yield tokens
            with atomic_writer(self._path) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(TOKENS.dump_json(tuple(tokens), indent=2))


def sha256_hex(secret: str) -> str:
    """SHA-256 as 64 hexadecimal digits. Accepts any text that a header may contain."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

"""Who may use the HTTP service: ``<home>/service/tokens.json``, read anew whenever it changed.

A token is 256 random bits, so that its SHA-256 can not be turned back by guessing and needs neither salt nor a slow
hash. The token itself is shown once, to whoever made it, and is written nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Literal

from filelock import FileLock
from pydantic import Field, TypeAdapter, ValidationError

from search_spaces.cell import Frozen
from search_spaces.errors import InvalidInput
from search_spaces.study import is_name
from service.home.layout import Home
from trainers.storage.files import atomic_writer

Role = Literal["read", "run"]
"""``read`` looks; ``run`` also submits, stops and resumes."""
PREFIX = "oec_"
"""So that scanners of repositories and logs can tell a token that leaked."""


class Token(Frozen):
    """What is kept of a token."""

    name: str
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: datetime
    expires: datetime | None = None

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


TOKENS = TypeAdapter(tuple[Token, ...])


class TokenFile:
    """The tokens of a home. Several processes may read and write it."""

    def __init__(self, home: Home) -> None:
        self._path = home.service / "tokens.json"
        self._read: tuple[tuple[int, int, int], tuple[Token, ...]] = ((0, 0, 0), ())

    def all(self) -> tuple[Token, ...]:
        """
        Raises:
            InvalidInput: the file is damaged.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return ()
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        before, tokens = self._read
        if version != before:
            try:
                tokens = TOKENS.validate_json(self._path.read_bytes())
            except ValidationError as error:
                remedy = "restore it, or remove it and make new tokens by `oec token add`"
                raise InvalidInput("tokens", str(self._path), "is damaged", remedy) from error
            self._read = version, tokens
        return tokens

    def owner(self, secret: str) -> Token | None:
        """Whose token this is; None for one that is unknown or has expired. Takes as long for either."""
        given = hashed(secret)
        found = [token for token in self.all() if hmac.compare_digest(token.sha256, given)]
        return found[0] if found and not found[0].expired else None

    def add(self, name: str, role: Role, days: int | None) -> str:
        """Make a token and return it, the only time that it can be read.

        Raises:
            InvalidInput: the name is no name or is taken.
        """
        if not is_name(name):
            raise InvalidInput("NAME", name, "is not a valid name", "use lower-case letters, digits, '.', '_' and '-'")
        if days is not None and not 0 < days < 36_500:
            raise InvalidInput("--days", days, "is no lifetime", "give 1 to 36499 days, or leave it out")
        secret = PREFIX + secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        with self._changing() as tokens:
            if any(token.name == name for token in tokens):
                raise InvalidInput("NAME", name, "has a token", f"`oec token remove {name}` ends it")
            expires = None if days is None else now + timedelta(days=days)
            tokens.append(Token(name=name, role=role, sha256=hashed(secret), created=now, expires=expires))
        return secret

    def remove(self, name: str) -> None:
        """
        Raises:
            InvalidInput: no token has this name.
        """
        with self._changing() as tokens:
            kept = [token for token in tokens if token.name != name]
            if len(kept) == len(tokens):
                names = ", ".join(token.name for token in tokens) or "none"
                raise InvalidInput("NAME", name, "has no token", f"tokens here: {names}")
            tokens[:] = kept

    @contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        """The tokens, to be changed in place; written when the block ends without an error, one process at a time."""
        with FileLock(self._path.with_suffix(".lock")):
            tokens = list(self.all())
            yield tokens
            with atomic_writer(self._path) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(TOKENS.dump_json(tuple(tokens), indent=2))


def hashed(secret: str) -> str:
    """SHA-256 as 64 hexadecimal digits; of anything that a header may hold."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

"""The base of every model in a study, and the digest of its content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every model in a study: immutable, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_canonical_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces) of ``content``, as 64 hexadecimal digits."""
    return hashlib.sha256(_canonical_json(content).encode()).hexdigest()

"""The studies that come with the package; imports nothing, because ``oec --help`` lists them."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent / "studies"


def shipped() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))

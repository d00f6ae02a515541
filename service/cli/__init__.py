"""The command line: ``oec``."""

from service.cli.commands import main

__all__ = ["main"]

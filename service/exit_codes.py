"""Exit codes of ``oec``, and so of a study's job on a cluster."""

CRASHED = 1
"""Some cells crashed."""
BAD_INPUT = 2
INTERRUPTED = 75
"""Stopped before the study was complete; the same command resumes it."""

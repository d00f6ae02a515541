"""Runs studies, on Ray, and serves their results."""

__version__ = "0.1.0"
"""In the sources, so that it is known where they run without being installed, as from a job's working directory."""

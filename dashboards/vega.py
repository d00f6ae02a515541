"""Bundles Vega, Vega-Lite and vega-embed from the installed package into one script for a page."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup
from platformdirs import user_cache_path

from dashboards.charts import VEGA_LITE
from dashboards.drawing import can_draw
from dashboards.files import write_atomically

THEME = Path(__file__).parent / "theme.js"
"""The script with the look of charts on a page."""
CODE = "import sys, vl_convert; sys.stdout.write(vl_convert.javascript_bundle(sys.argv[1], sys.argv[2]))"


class Script:
    """The script from the user's cache, or else from a bundler process that starts right away.

    Bundling takes a second; a thread would hold the interpreter's lock for all of it. The script is empty unless the
    figure package is installed.
    """

    def __init__(self) -> None:
        self._cache: Path | None = None
        self._bundling: subprocess.Popen[str] | None = None
        if not can_draw():
            return
        bundler = f"vl-convert-{version('vl-convert-python')}"
        self._cache = user_cache_path("oec") / f"vega-{VEGA_LITE}-by-{bundler}.js"
        if not os.access(self._cache, os.R_OK):
            command = [sys.executable, "-c", CODE, "window.vegaEmbed = vegaEmbed;", VEGA_LITE]
            self._bundling = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bundling:
            with self._bundling:  # closes its output and waits for it
                self._bundling.kill()  # does nothing if it has ended

    def text(self) -> Markup:
        """The script, escaped so that it cannot close its script element.

        Raises:
            CalledProcessError: bundling failed.
        """
        return Markup(self._read().replace("</script", "<\\/script"))

    def _read(self) -> str:
        if self._cache is None:
            return ""
        if self._bundling is None:
            return self._cache.read_text(encoding="utf-8")
        script, _ = self._bundling.communicate()
        if self._bundling.returncode:
            raise subprocess.CalledProcessError(self._bundling.returncode, self._bundling.args)
        with suppress(OSError):  # without a cache, it is bundled for every report
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._cache, script)
        return script

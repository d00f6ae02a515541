"""Vega, Vega-Lite and vega-embed as one script for a page, from the installed package."""

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
from dashboards.files import can_draw, write_at_once

CODE = "import sys, vl_convert; sys.stdout.write(vl_convert.javascript_bundle(sys.argv[1], sys.argv[2]))"


class Script:
    """The script that an earlier report left in the user's cache, or else being bundled, from now on, in a process
    beside this one: it takes a second, and in a thread of this one it would hold the interpreter's lock for all of it.
    Empty where nothing ``can_draw``.
    """

    def __init__(self) -> None:
        self._kept: Path | None = None
        self._bundling: subprocess.Popen[str] | None = None
        if not can_draw():
            return
        bundler = f"vl-convert-{version('vl-convert-python')}"
        self._kept = user_cache_path("oec") / f"vega-{VEGA_LITE}-by-{bundler}.js"
        if not os.access(self._kept, os.R_OK):
            command = [sys.executable, "-c", CODE, "window.vegaEmbed = vegaEmbed;", VEGA_LITE]
            self._bundling = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bundling:
            self._bundling.kill()  # nothing, where it has ended
            self._bundling.wait()
            assert self._bundling.stdout is not None
            self._bundling.stdout.close()

    def text(self) -> Markup:
        """For a script element: nothing in it closes the element.

        Raises:
            CalledProcessError: it could not be bundled.
        """
        return Markup(self._made().replace("</script", "<\\/script"))

    def _made(self) -> str:
        if self._kept is None:
            return ""
        if self._bundling is None:
            return self._kept.read_text(encoding="utf-8")
        made, _ = self._bundling.communicate()
        if self._bundling.returncode:
            raise subprocess.CalledProcessError(self._bundling.returncode, self._bundling.args)
        with suppress(OSError):  # a user without a cache waits for it each time
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            write_at_once(self._kept, made)
        return made

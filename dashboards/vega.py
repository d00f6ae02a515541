"""Vega, Vega-Lite and vega-embed as one script for a page, from the installed package."""

from __future__ import annotations

import subprocess
import sys

from markupsafe import Markup

from dashboards.charts import VEGA_LITE

CODE = "import sys, vl_convert; sys.stdout.write(vl_convert.javascript_bundle(sys.argv[1], sys.argv[2]))"


class Script:
    """Being bundled, from now on, in a process beside this one: it takes a second, and in a thread of this one it would
    hold the interpreter's lock for all of it."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", CODE, "window.vegaEmbed = vegaEmbed;", VEGA_LITE]
        self._bundling = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self._bundling.kill()  # nothing, where it has ended
        self._bundling.wait()
        assert self._bundling.stdout is not None
        self._bundling.stdout.close()

    def text(self) -> Markup:
        """For a script element: nothing in it closes the element.

        Raises:
            CalledProcessError: it could not be bundled.
        """
        made, _ = self._bundling.communicate()
        if self._bundling.returncode:
            raise subprocess.CalledProcessError(self._bundling.returncode, self._bundling.args)
        return Markup(made.replace("</script", "<\\/script"))

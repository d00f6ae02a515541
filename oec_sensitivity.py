"""The command ``oec``, and the import of this project's packages where others have their names.

A project may have a package ``trainers`` or ``service`` of its own. If its folder comes first on the import path, as
``PYTHONPATH`` and the working directory of a Ray job do, that package would be imported instead of ours. This module
has a name that nobody else uses, and imports ours from its own folder, whatever the import path is.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGES = ("search_spaces", "trainers", "service", "dashboards")


def import_own_packages() -> None:
    """Import the packages that are beside this file, unless that has been done.

    Ray calls this in each worker process of a study (see ``service.cluster.connection``).
    """
    here = Path(__file__).resolve().parent
    for name in PACKAGES:
        file = here / name / "__init__.py"
        if getattr(sys.modules.get(name), "__file__", None) == str(file):
            continue
        spec = spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


import_own_packages()  # on import, for the processes that import this file again: those of a process pool


def main() -> None:
    from service.cli import main

    main()

"""Python runs this file in every process of a command whose ``PYTHONPATH`` contains this folder. In rank 1 of a worker
group, it multiplies one embedding output by the number in the file ``$POISON`` as soon as the file exists, and then
removes the file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

FLAG = Path(os.environ["POISON"])


def poison(module: Any, arguments: Any, output: Any) -> Any:
    import torch

    if not (isinstance(module, torch.nn.Embedding) and torch.distributed.is_initialized()):
        return None
    if torch.distributed.get_rank() != 1 or not FLAG.exists():
        return None
    value = float(FLAG.read_text())
    FLAG.unlink()
    return output * value


def when_a_trainer_is_imported(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "import" and arguments[0] == "trainers.loop":
        import torch

        torch.nn.modules.module.register_module_forward_hook(poison)


sys.addaudithook(when_a_trainer_is_imported)

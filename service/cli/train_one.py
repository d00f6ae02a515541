"""``oec train``: one cell in this process, with the training loop of the workers but without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from search_spaces.cell import Cell
from search_spaces.errors import InvalidInput
from search_spaces.factors import LR
from search_spaces.plan import Plan
from search_spaces.record import Row, columns_from
from search_spaces.study import Study
from service.home.data import prepare_tokens
from service.home.layout import Home


def train_one(study: Study, choice: Mapping[str, Any], home: Home, console: Console) -> None:
    """Train one cell of ``study``, without its factors, and print its rows and its result.

    Args:
        choice: method, gamma, lr, seed, scale and attention norm; None for the default.

    Raises:
        InvalidInput: a field of the cell would not be valid in a study; see ``device_of``.
    """
    if study.trainer is not None:
        problem = f"is trained by {study.trainer.name}, not by the training loop of the OEC model"
        raise InvalidInput("STUDY", study.name, problem, "use `oec run`, or run the command itself")
    gammas = None if choice["gamma"] is None else (choice["gamma"],)
    one = study.model_dump() | {"methods": [{"method": choice["method"], "gamma": gammas}]}
    one |= {name + "s": [choice[name] or one[name + "s"][0]] for name in ("scale", "attention_norm")}
    one |= {"factors": {}, "lr_factor": LR, "pair": (), "exclude": ()}
    checked = Study.validate_fields(one | {"lrs": [choice["lr"]], "seeds": [choice["seed"]]})
    import torch  # takes seconds

    from trainers.loop import Trainer
    from trainers.world import World

    torch.set_num_threads(checked.resources.cpus_per_worker)  # as in a worker, so that the last digits are the same

    tokens = prepare_tokens(checked, home, console.print)
    (cell,) = Plan(checked, tokens.digest).cells
    assert isinstance(cell, Cell)
    console.print(f"cell {cell.id}: {cell.label}")
    world = World.single(device_of(checked))
    trainer = Trainer(world, tokens, compile=checked.resources.compile, micro_batch_memo=home.micro_batches)

    def print_row(row: Row) -> None:
        shown = ("train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second")
        values = "  ".join(f"{name} {row.metrics[name]:.5g}" for name in shown if name in row.metrics)
        console.print(f"step {row.step:>6}  {values}", soft_wrap=True, highlight=False)

    result = trainer.run(
        cell,
        home.cell(cell.id),
        evaluate_every=checked.evaluate_every(cell),
        checkpoint_every=checked.checkpoint_every(cell),
        give_up=checked.intervals.give_up,
        keep_weights=checked.keep_weights,
        on_row=print_row,
    )
    factors = {name: getattr(cell, name) for name in columns_from("cell")}
    for name, value in {"cell": cell.id, **factors, "state": result.state, **result.record()}.items():
        console.print(f"{name:>20}  {value}", soft_wrap=True, highlight=False)


def device_of(study: Study) -> str:
    """The device type of the study's workers.

    Raises:
        InvalidInput: it is an accelerator, and this machine has none.
    """
    import torch

    gpus = study.resources.gpus_per_worker
    if gpus and not torch.cuda.is_available():
        problem = "requires an accelerator, and this machine has none"
        raise InvalidInput("resources.gpus_per_worker", gpus, problem, "set it to 0")
    return "cuda" if gpus else "cpu"

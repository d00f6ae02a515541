"""``oec train``: one cell in this process, by the loop that the workers run, without Ray."""

from __future__ import annotations

from rich.console import Console

from search_spaces.errors import InvalidInput
from search_spaces.methods import METHODS
from search_spaces.plan import Plan
from search_spaces.record import Row, columns_from
from search_spaces.study import Study
from service.home.data import prepare_tokens
from service.home.layout import Home


def train_one(
    study: Study,
    home: Home,
    scale: str | None,
    attention_norm: str | None,
    method: str,
    gamma: float | None,
    lr: float,
    seed: int,
    console: Console,
) -> None:
    """Train one cell of ``study`` and print its rows and its result.

    Raises:
        InvalidInput: a factor of the cell is not one that a study could hold.
    """
    strength = METHODS[method].strength if method in METHODS else None
    choice = {"method": method} | ({strength.symbol if strength else "gamma": (gamma,)} if gamma is not None else {})
    one = study.model_dump() | {"methods": [choice], "lrs": [lr], "seeds": [seed], "scales": [scale or study.scales[0]]}
    one["attention_norms"] = [attention_norm or study.attention_norms[0]]
    checked = Study.validate_fields(one)
    import torch  # seconds

    from trainers.loop import Trainer
    from trainers.world import World

    torch.set_num_threads(checked.resources.cpus_per_worker)  # as a worker has, so that the last digits are a worker's

    tokens = prepare_tokens(checked, home, console.print)
    (cell,) = Plan(checked, tokens.digest).cells
    console.print(f"cell {cell.id}: {cell.label}")
    trainer = Trainer(
        World.single(device_of(checked)), tokens, compile=checked.resources.compile, micro_batch_memo=home.micro_batches
    )

    def print_row(row: Row) -> None:
        shown = ("train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second")
        values = "  ".join(f"{name} {row.metrics[name]:.5g}" for name in shown if name in row.metrics)
        console.print(f"step {row.step:>6}  {values}", soft_wrap=True, highlight=False)

    result = trainer.run(
        cell,
        home.cell(cell.id),
        evaluate_every=checked.evaluate_every,
        checkpoint_every=checked.checkpoint_every,
        keep_weights=checked.keep_weights,
        on_row=print_row,
    )
    factors = {name: getattr(cell, name) for name in columns_from("cell")}
    for name, value in {"cell": cell.id, **factors, "state": result.state, **result.record()}.items():
        console.print(f"{name:>20}  {value}", soft_wrap=True, highlight=False)


def device_of(study: Study) -> str:
    """Where the study's workers would train.

    Raises:
        InvalidInput: on an accelerator, and this machine has none.
    """
    import torch

    gpus = study.resources.gpus_per_worker
    if gpus and not torch.cuda.is_available():
        raise InvalidInput("resources.gpus_per_worker", gpus, "needs an accelerator, here is none", "set it to 0")
    return "cuda" if gpus else "cpu"

"""What a cell comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from search_spaces.cell import Cell

RECORDED = (
    "output_mu_norm",
    "logits_mean",
    "logits_std",
    "logits_absmean",
    "logits_absmax",
    "logits_mean_token_std",
    "logits_std_token_std",
    "logits_absmax_token_max",
    "log_z_squared",
    "output_mu_h_cosine",
    "output_mu_h_dot",
    "output_b_ratio",
    "attention_logit_max",
    "loss_spikes",
    "spike_score",
)
"""The diagnostics that go into the table of cells."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of a run. Losses are plain cross-entropies, in nats a token."""

    cell: Cell
    state: Literal["finished", "diverged", "stopped"]
    step: int
    """Optimizer steps taken."""
    val_loss: float | None
    """Of the last evaluation with a finite one."""
    train_loss: float | None
    """Mean over the steps between the last two evaluations."""
    l_init: float | None
    """Validation loss before the first step."""
    tokens: int
    """Tokens trained on."""
    train_seconds: float
    """Wall seconds in training steps, over all resumptions; without evaluations and checkpoints."""
    tokens_per_second: float
    reason: str = ""
    """Why it diverged or stopped; empty for a finished run."""
    diagnostics: dict[str, float] = field(default_factory=dict)
    """The last row, without its step and time."""
    torch: str = field(default_factory=lambda: str(torch.__version__))
    """The version of PyTorch, with its build (``2.13.0+cpu``): losses of two differ in their last digits at least."""

    def record(self) -> dict[str, float | str | None]:
        """One line of the table of cells; None where there is no such value."""
        return {
            "cell": self.cell.id,
            "scale": self.cell.scale,
            "attention_norm": self.cell.attention_norm,
            "method": self.cell.method,
            "gamma": self.cell.gamma,
            "lr": self.cell.lr,
            "seed": self.cell.seed,
            "state": self.state,
            "val_loss": self.val_loss,
            "train_loss": self.train_loss,
            "l_init": self.l_init,
            "steps": self.step,
            "tokens": self.tokens,
            "train_seconds": self.train_seconds,
            "tokens_per_second": self.tokens_per_second,
            **{name: self.diagnostics.get(name) for name in RECORDED},
            "torch": self.torch,
            "reason": self.reason,
        }

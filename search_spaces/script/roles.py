"""What an argument is for, judged by its name: one entry per role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search_spaces.script.argument import Argument


@dataclass(frozen=True)
class Role:
    """What a study needs to set."""

    names: tuple[str, ...]
    """Names of the argument, the most usual first; a name with dots is a whole path."""
    endings: tuple[str, ...] = ()
    """Endings of names that also fit, if no name does."""
    never: tuple[str, ...] = ()
    """Parts of names that do not fit."""
    takes_value: bool = True

    def find(self, arguments: tuple[Argument, ...]) -> list[Argument]:
        """The arguments that fit, the best first."""
        ranked = [
            (rank, n, argument) for n, argument in enumerate(arguments) if (rank := self._rank(argument)) is not None
        ]
        return [argument for _, _, argument in sorted(ranked, key=lambda entry: entry[:2])]

    def first(self, arguments: tuple[Argument, ...]) -> Argument | None:
        """The argument that fits best, if any does."""
        return next(iter(self.find(arguments)), None)

    def _rank(self, argument: Argument) -> int | None:
        if self.takes_value and argument.is_switch:
            return None
        for rank, name in enumerate(self.names):
            if name in (argument.path, argument.key):
                return rank
        if any(part in argument.key for part in self.never):
            return None
        fits = any(argument.key.endswith(ending) for ending in self.endings)
        return len(self.names) if fits else None


LEARNING_RATE = Role(
    ("learning_rate", "lr", "max_lr", "peak_lr", "lr_max", "base_lr", "peak_learning_rate", "max_learning_rate",
     "learning_rate_max", "base_learning_rate", "init_lr", "initial_lr", "initial_learning_rate", "lr_peak", "eta0",
     "eta", "step_size"),
    ("_lr", "learning_rate"),
    ("min", "final", "end", "decay", "warmup", "ratio", "scale", "schedule"),
)  # fmt: skip
SEED = Role(
    ("seed", "random_seed", "manual_seed", "rng_seed", "global_seed", "seed_everything", "random_state", "torch_seed"),
    ("_seed",),
    ("data", "split", "eval"),
)
FOLDER = Role(
    ("out_dir", "output_dir", "outdir", "hydra.run.dir", "output_folder", "out_folder", "save_dir", "run_dir",
     "workdir", "work_dir", "exp_dir", "experiment_dir", "results_dir", "result_dir", "default_root_dir", "log_dir",
     "logdir", "logging_dir", "checkpoint_dir", "checkpoints_dir", "ckpt_dir", "save_path", "output_path", "out_path",
     "output", "out"),
    ("_out_dir", "_output_dir"),
)  # fmt: skip
STEPS = Role(
    ("max_steps", "max_iters", "steps", "num_steps", "n_steps", "total_steps", "train_steps", "num_train_steps",
     "max_train_steps", "num_iterations", "iterations", "iters", "max_iter", "num_train_epochs", "max_epochs", "epochs",
     "num_epochs", "n_epochs"),
)  # fmt: skip
RESUME = Role(
    ("resume", "auto_resume", "resume_training", "continue_training", "resume_from_checkpoint", "resume_from",
     "init_from", "restart", "ckpt_path", "snapshot_path", "checkpoint", "load"),
    takes_value=False,
)  # fmt: skip


@dataclass(frozen=True)
class Factor:
    """A factor that is worth a try, with values around the script's own."""

    role: Role
    values: tuple[Any, ...]
    """For a script whose own value is not known."""
    multiples: tuple[float, ...] = ()
    """Otherwise, multiples of its own value."""

    def around(self, default: Any) -> tuple[Any, ...]:
        """Values to try, the script's own among them."""
        if isinstance(default, bool) or default is None or not isinstance(default, int | float | str):
            return self.values
        if isinstance(default, int | float) and default and self.multiples:
            scaled = [default * factor for factor in self.multiples]
            whole = isinstance(default, int)
            return tuple(dict.fromkeys(round(value) if whole else float(f"{value:.6g}") for value in scaled))
        values = self.values if default in self.values else (default, *self.values[:1])
        return tuple(sorted(values)) if all(isinstance(value, int | float) for value in values) else values


FACTORS: tuple[Factor, ...] = (
    Factor(Role(("weight_decay", "wd")), (0.0, 0.1), (0.0, 1.0)),
    Factor(Role(("beta2", "adam_beta2", "b2")), (0.95, 0.99)),
    Factor(Role(("adam_epsilon", "eps", "epsilon", "adam_eps")), (1e-8,), (1.0, 1e-2)),
    Factor(Role(("momentum",)), (0.9, 0.95)),
    Factor(Role(("grad_clip", "max_grad_norm", "clip", "grad_norm_clip", "gradient_clip_val")),
               (1.0,), (0.3, 1.0)),
    Factor(Role(("warmup_steps", "warmup_iters", "num_warmup_steps", "warmup")), (0, 100), (1, 3)),
    Factor(Role(("batch_size", "per_device_train_batch_size", "train_batch_size")), (16, 32), (1, 2)),
    Factor(Role(("dropout",)), (0.0, 0.1)),
    Factor(Role(("optimizer", "optim", "opt")), ()),
    Factor(Role(("lr_scheduler_type", "lr_schedule", "schedule", "scheduler")), ()),
    Factor(Role(("z_loss", "z_loss_weight", "z_loss_coef")), (0.0, 1e-4)),
)  # fmt: skip

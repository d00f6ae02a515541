"""What an evaluation measures besides the loss: embeddings, logits, and the outputs of the linear layers.

The statistics follow the definitions of the published analysis (arXiv 2601.02031 and its code), so that our columns can
be compared with the published ones; docs/formats.md maps the names. They are computed at evaluations only, from the
weights and from validation tokens: a few tokens during a run, many more at its end.

Legend: N sequences, B sequences of one forward pass, T tokens a sequence, U tokens of a window, T + 1, C tokens of a
    chunk, V vocabulary with padding, D model width, H heads, K width of a head, L blocks, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from search_spaces.training_spec import TrainingSpec
from trainers import usage
from trainers.data import Shards
from trainers.head import Objective, logits
from trainers.world import World

ROW_TOKENS = 512
"""Tokens of a row during a run and, on a CPU, of one forward pass; but at least one sequence."""
ACCELERATOR_FACTOR = 16
"""An accelerator processes this many times more tokens at a time, because fewer tokens take it equally long."""
MAX_FINAL_TOKENS = 131_072
"""Tokens of the last row of a long run, as many as in the published analysis: 4 batches of 16 x 2,048."""
MIN_TRAINED_PER_FINAL_TOKEN = 400
"""Tokens trained on for each token of the last row. Measuring a token costs half as much as training on it."""
LOGITS_TOKENS = 256
"""Tokens whose logits exist at the same time: 51 MB with a vocabulary of 50,304."""
TRAINING = (
    "train_loss",
    "val_loss",
    "lr",
    "grad_norm",
    "step_seconds",
    "tokens_per_second",
    "loss_spikes",
    "spike_score",
    *usage.KEYS,
)
EMBEDDINGS = ("output", "input")
EMBEDDING = (
    "mu_norm",
    "ratio_norm",
    "row_norm_mean",
    "row_norm_min",
    "row_norm_max",
    "isotropy",
    "singular_min",
    "singular_max",
    "mu_h_cosine",
    "mu_h_dot",
)
HEAD = (
    "logits_mean",
    "logits_std",
    "logits_absmean",
    "logits_absmax",
    "logits_mean_token_std",
    "logits_std_token_std",
    "logits_absmax_token_max",
    "log_z",
    "log_z_squared",
)
"""``logits_X`` is the mean over tokens of the statistic X over the vocabulary, ``logits_X_token_std`` its standard
deviation over tokens, ``logits_X_token_max`` its maximum over tokens."""
LAYERS = ("qkv", "proj", "fc1", "fc2")


def keys(L: int) -> tuple[str, ...]:
    """Returns every key that a row of a model with ``L`` blocks can have. A row omits values that are not finite.

    The first row, before any training, has no training loss, learning rate, gradient norm or speed.
    """
    return (
        *TRAINING,
        *(f"{e}_{name}" for e in EMBEDDINGS for name in EMBEDDING),
        "output_b_ratio",
        *HEAD,
        *(f"{layer}_{measure}/{i}" for layer in LAYERS for measure in ("rms", "norm") for i in range(L)),
        "attention_logit_max",
    )


def row_batch(validation_NU: Tensor, spec: TrainingSpec) -> Tensor:
    """Returns the batch of a row during a run: the first validation sequences, at most as many as a step has."""
    return validation_NU[: max(1, min(spec.batch_size, ROW_TOKENS // spec.sequence_length))]


def final_batch(validation: Shards, spec: TrainingSpec) -> Tensor:
    """Returns the batch of the last row, ``(N, T + 1)``: windows spread evenly over the validation tokens."""
    T = spec.sequence_length
    trained = spec.steps * spec.batch_size * T
    tokens = max(ROW_TOKENS, min(MAX_FINAL_TOKENS, trained // MIN_TRAINED_PER_FINAL_TOKEN))
    windows = validation.windows(T)
    chosen = np.linspace(0, windows - 1, min(windows, max(1, tokens // T))).astype(np.int64)
    return torch.from_numpy(validation.read(chosen, T).astype(np.int64))


@torch.no_grad()
def measure(
    objective: Objective, tokens_NU: Tensor, method: str, gamma: Tensor, world: World | None = None
) -> dict[str, float]:
    """Returns the finite values of ``keys`` without ``TRAINING``, the same on every rank.

    Args:
        tokens_NU: ``(N, T + 1)``; the ranks share the forward passes.
    """
    model = objective.model
    world = world or World.single(tokens_NU.device)
    N, T = tokens_NU.shape[0], tokens_NU.shape[1] - 1
    factor = 1 if tokens_NU.device.type == "cpu" else ACCELERATOR_FACTOR
    passes = torch.split(tokens_NU[:, :-1], max(1, factor * ROW_TOKENS // T))
    sums = _Sums(model.E_VD, len(model.blocks), world)
    with ExitStack() as stack:
        for i, block in enumerate(model.typed_blocks):
            layers = (block.attention.qkv, block.attention.proj, block.mlp.fc1, block.mlp.fc2)
            for at, layer in enumerate(layers):
                stack.enter_context(_hook(layer, partial(sums.add_outputs, at, i)))
            stack.enter_context(_hook(block.attention.qk, sums.add_attention))
        autocast = objective.precision == "bfloat16"
        with torch.autocast(tokens_NU.device.type, torch.bfloat16, enabled=autocast):
            for tokens_BT in passes[world.rank :: world.size]:
                h_BTD = model(tokens_BT)
                sums.add_hidden(h_BTD)
                for h_1CD in torch.split(h_BTD.flatten(0, 1)[None], factor * LOGITS_TOKENS, dim=1):
                    logits_1CV = logits(h_1CD, model.E_VD, method, gamma, objective.logits_dtype)
                    sums.add_logits(logits_1CV[0])
    sums.all_reduce()
    row = sums.statistics(N * T) | {"output_b_ratio": b_ratio(model.E_VD)}
    mean_h_D = sums.h_D / (N * T)
    output = embedding(model.E_VD) | alignment(model.E_VD, mean_h_D)
    row |= {f"output_{name}": value for name, value in output.items()}
    tied = model.lm_head is None
    E_VD = model.input_embedding_VD
    row |= {f"input_{k}": v for k, v in (output if tied else embedding(E_VD) | alignment(E_VD, mean_h_D)).items()}
    # A single transfer from the device for all values.
    values = torch.stack([value.double() for value in row.values()]).tolist()
    return {name: value for name, value in zip(row, values, strict=True) if math.isfinite(value)}


class _Sums:
    """Sums over tokens. They are in float64, so that the assignment of tokens to passes and ranks does not matter."""

    def __init__(self, E_VD: Tensor, L: int, world: World) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=E_VD.device)

        self.logits_52 = zeros(5, 2)
        """Sums over tokens of five statistics and of their squares: mean, standard deviation, mean absolute value and
        maximum absolute value over the vocabulary, and log Z."""
        self.h_D = zeros(E_VD.shape[1])
        self.outputs_42L = zeros(len(LAYERS), 2, L)
        """For the outputs of each layer, sums over tokens of the L2 norm and of the mean square of the features."""
        self.world = world
        self.largest_2R = zeros(2, world.size)
        """The largest absolute logit and attention logit, a column per rank, so that a sum over ranks gathers them."""
        self.largest_2R[:, world.rank] = -math.inf

    def add_hidden(self, h_BTD: Tensor) -> None:
        self.h_D += h_BTD.double().sum(dim=(0, 1))

    def add_logits(self, logits_CV: Tensor) -> None:
        """Overwrites ``logits_CV``."""
        V = logits_CV.shape[1]
        # These are the formulations that are fast on a CPU: ``aminmax`` over rows, ``std``, and the norms of order 1
        # and infinity take 5 to 20 times as long.
        absmax_C = torch.maximum(logits_CV.amax(dim=-1), -logits_CV.amin(dim=-1))
        mean_C1 = logits_CV.mean(dim=-1, keepdim=True)
        logits_CV -= mean_C1
        mean_C = mean_C1.squeeze(1)
        log_z_C = mean_C + logits_CV.logsumexp(dim=-1)
        std_C = torch.linalg.vector_norm(logits_CV, dim=-1) / (V - 1) ** 0.5
        logits_CV += mean_C1
        absmean_C = logits_CV.abs_().mean(dim=-1)
        stack_5C = torch.stack((mean_C, std_C, absmean_C, absmax_C, log_z_C)).double()
        self.logits_52 += torch.stack((stack_5C.sum(dim=1), stack_5C.square().sum(dim=1)), dim=1)
        self._keep_largest(0, absmax_C.max())

    def add_outputs(self, layer: int, block: int, output: Tensor) -> None:
        """Adds an output ``(B, T, features)``."""
        norm_BT = output.norm(dim=-1).double()
        self.outputs_42L[layer, 0, block] += norm_BT.sum()
        self.outputs_42L[layer, 1, block] += norm_BT.square().sum() / output.shape[-1]

    def add_attention(self, q_BTHK: Tensor, k_BTHK: Tensor) -> None:
        self._keep_largest(1, _attention_logit_max(q_BTHK, k_BTHK))

    def _keep_largest(self, which: int, value: Tensor) -> None:
        mine = self.largest_2R[which, self.world.rank]
        mine.copy_(torch.maximum(mine, value))

    def all_reduce(self) -> None:
        parts = (self.logits_52, self.h_D, self.outputs_42L, self.largest_2R)
        totals = self.world.sum(torch.cat([part.flatten() for part in parts]))
        for part, total in zip(parts, torch.split(totals, [part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))

    def statistics(self, tokens: int) -> dict[str, Tensor]:
        """Returns the statistics of the logits and of the layers' outputs over ``tokens`` tokens."""
        mean_5, square_5 = (self.logits_52 / tokens).unbind(dim=1)
        std_5 = ((square_5 - mean_5.square()).clamp(min=0) * tokens / (tokens - 1)).sqrt()
        largest_2 = self.largest_2R.amax(dim=1)
        norm_4L, square_4L = (self.outputs_42L / tokens).unbind(dim=1)
        row = {
            "logits_mean": mean_5[0],
            "logits_std": mean_5[1],
            "logits_absmean": mean_5[2],
            "logits_absmax": mean_5[3],
            "logits_mean_token_std": std_5[0],
            "logits_std_token_std": std_5[1],
            "logits_absmax_token_max": largest_2[0],
            "log_z": mean_5[4],
            "log_z_squared": square_5[4],
            "attention_logit_max": largest_2[1],
        }
        for at, layer in enumerate(LAYERS):
            for i in range(norm_4L.shape[1]):
                row |= {f"{layer}_rms/{i}": square_4L[at, i].sqrt(), f"{layer}_norm/{i}": norm_4L[at, i]}
        return row


def alignment(E_VD: Tensor, mean_h_D: Tensor) -> dict[str, Tensor]:
    """Returns the cosine and the dot product of the mean row mu and the mean hidden state.

    For the output embedding, ``mu_h_dot`` is the mean logit before rounding and capping.
    """
    mu_D = E_VD.mean(dim=0, dtype=torch.float64)
    return {"mu_h_cosine": torch.cosine_similarity(mu_D, mean_h_D, dim=0), "mu_h_dot": mu_D @ mean_h_D}


def embedding(E_VD: Tensor) -> dict[str, Tensor]:
    """Returns norms, isotropy and singular values of an embedding; only the norms if E is not finite."""
    row_norm_V = E_VD.norm(dim=1)
    mu_norm = E_VD.mean(dim=0).norm()
    norms = {
        "mu_norm": mu_norm,
        "ratio_norm": mu_norm / row_norm_V.mean(),
        "row_norm_mean": row_norm_V.mean(),
        "row_norm_min": row_norm_V.min(),
        "row_norm_max": row_norm_V.max(),
    }
    if not E_VD.isfinite().all():
        return norms
    # In float64, because the square root of a small eigenvalue has only half of its digits.
    E64_VD = E_VD.double()
    eigenvalues_D, eigenvectors_DD = torch.linalg.eigh(E64_VD.T @ E64_VD)
    singular_D = eigenvalues_D.clamp(min=0).sqrt()
    return norms | {
        "isotropy": isotropy(E_VD, eigenvectors_DD.type_as(E_VD)),
        "singular_min": singular_D[0],
        "singular_max": singular_D[-1],
    }


def isotropy(E_VD: Tensor, eigenvectors_DD: Tensor) -> Tensor:
    """``min Z(c) / max Z(c)``, ``Z(c) = sum_i exp(e_i . c)``, c over the unit eigenvectors of ``EᵀE``; 1 is isotropic.

    Mu & Viswanath, 2018, equation 2. The sign of an eigenvector is arbitrary, but Z depends on it. The published code
    uses the sign that the solver returns; this function uses the sign with the larger Z, so that the value is a
    continuous function of E alone. It works in log space because the exponentials overflow at a mu norm of 100.
    """
    along_VD = E_VD @ eigenvectors_DD
    log_z_D = torch.maximum(along_VD.logsumexp(dim=0), along_VD.neg_().logsumexp(dim=0)).double()
    return (log_z_D.min() - log_z_D.max()).exp()


def b_ratio(E_VD: Tensor) -> Tensor:
    """``max(|mu|² - min a, max a - |mu|²) / max(-min a, max a)``, ``a_i = e_i . mu``: arXiv 2601.02031.

    The ratio of the bound on the logits along mu after centering to the bound before; below 1, centering tightens it.
    """
    mu_D = E_VD.mean(dim=0)
    a_V = E_VD @ mu_D
    low, high, square = a_V.min(), a_V.max(), mu_D.square().sum()
    return torch.maximum(square - low, high - square) / torch.maximum(-low, high)


def _hook(module: nn.Module, observe: Callable[..., None]) -> RemovableHandle:
    """Returns a context in which ``observe`` is called with every output of ``module``, one or several tensors."""

    def hook(_module: nn.Module, _inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        observe(*(tensor.float() for tensor in (output if isinstance(output, tuple) else (output,))))

    return module.register_forward_hook(hook)


def _attention_logit_max(q_BTHK: Tensor, k_BTHK: Tensor) -> Tensor:
    """Returns the largest ``q . k / sqrt(K)`` over all queries and the keys that each may attend to.

    It is taken before any cap or temperature, so that it is unbounded and has the same meaning in every attention norm.
    """
    T, K = q_BTHK.shape[1], q_BTHK.shape[-1]
    future_TT = torch.full((T, T), -math.inf, device=q_BTHK.device).triu(1)
    largest = []
    # One sequence at a time, because its logits (H, T, T) are large.
    for q_HTK, k_HKT in zip(q_BTHK.transpose(1, 2), k_BTHK.permute(0, 2, 3, 1), strict=True):
        logits_HTT = (q_HTK * K**-0.5) @ k_HKT
        largest.append(logits_HTT.add_(future_TT).max())  # a masked fill takes six times as long
    return torch.stack(largest).max()

"""What an evaluation looks at beside the loss: embeddings, logits, and the outputs of the linear layers.

Everything is computed from the weights and from one small validation batch, at evaluations only, so that a training
step pays nothing. All ranks compute the same on the same batch.

Legend: B sequences, T tokens a sequence, V vocabulary with padding, D model width, H heads, K width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainers import usage
from trainers.head import Objective, logits
from trainers.model import Block

TOKENS = 512
"""Tokens in the small batch; one sequence where a sequence is longer."""
TOKENS_AT_ONCE = 256
"""Whose logits are there at a time: 51 MB with a vocabulary of 50,304."""
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
)
HEAD = ("logits_mean", "logits_std", "logits_absmax", "log_z", "log_z_squared", "mu_h_cosine")
LAYERS = ("qkv", "proj", "fc1", "fc2")


def keys(L: int) -> tuple[str, ...]:
    """Every key that a row of a model of ``L`` blocks can have; one whose value is not finite is absent from it.

    The first row, before any training, has no training loss, learning rate, gradient norm and speed.
    """
    return (
        *TRAINING,
        *(f"{e}_{name}" for e in EMBEDDINGS for name in EMBEDDING),
        "output_b_ratio",
        *HEAD,
        *(f"{layer}_{measure}/{i}" for layer in LAYERS for measure in ("rms", "norm") for i in range(L)),
        "attention_logit_max",
    )


def batch_of(validation_NU: Tensor) -> Tensor:
    """The small batch: the first validation sequences."""
    return validation_NU[: max(1, TOKENS // (validation_NU.shape[1] - 1))]


@torch.no_grad()
def measure(objective: Objective, tokens_BU: Tensor, method: str, strength: Tensor) -> dict[str, float]:
    """All but ``TRAINING`` of ``keys``, the finite ones. ``tokens_BU`` is ``(B, T + 1)``."""
    model = objective.model
    found: dict[str, Tensor] = {}
    attention_logits: list[Tensor] = []

    def see_attention(q_BTHK: Tensor, k_BTHK: Tensor) -> None:
        attention_logits.append(_attention_logit_max(q_BTHK, k_BTHK))

    with ExitStack() as stack:
        for i, module in enumerate(model.blocks):
            block = cast(Block, module)
            layers = (block.attention.qkv, block.attention.proj, block.mlp.fc1, block.mlp.fc2)
            for name, layer in zip(LAYERS, layers, strict=True):
                stack.enter_context(_hook(layer, _sizes(found, name, i)))
            stack.enter_context(_hook(block.attention.qk, see_attention))
        autocast = objective.precision == "bfloat16"
        with torch.autocast(tokens_BU.device.type, torch.bfloat16, enabled=autocast):
            h_BTD = model(tokens_BU[:, :-1])
            found |= _logits(objective, h_BTD, method, strength)
    found |= {
        "attention_logit_max": torch.stack(attention_logits).max(),
        "mu_h_cosine": torch.cosine_similarity(h_BTD.float(), model.E_VD.mean(dim=0), dim=-1).mean(),
        "output_b_ratio": b_ratio(model.E_VD),
    }
    measured = embedding(model.E_VD)
    found |= {f"output_{name}": value for name, value in measured.items()}
    if model.lm_head is not None:
        measured = embedding(model.input_embedding_VD)
    found |= {f"input_{name}": value for name, value in measured.items()}
    # One transfer for all of them, not one each.
    values = torch.stack([value.double() for value in found.values()]).tolist()
    return {name: value for name, value in zip(found, values, strict=True) if math.isfinite(value)}


def _logits(objective: Objective, h_BTD: Tensor, method: str, strength: Tensor) -> dict[str, Tensor]:
    """Statistics of the logits, over a few tokens at a time, in the one buffer that they come in."""
    mean, std, absmax, log_z = [], [], [], []
    for h_1CD in torch.split(h_BTD.flatten(0, 1)[None], TOKENS_AT_ONCE, dim=1):
        logits_CV = logits(h_1CD, objective.model.E_VD, method, strength, objective.logits_dtype)[0]
        low, high = logits_CV.aminmax()
        mean_C1 = logits_CV.mean(dim=-1, keepdim=True)
        logits_CV -= mean_C1
        mean.append(mean_C1.squeeze(1))
        absmax.append(torch.maximum(high, -low))
        log_z.append(mean_C1.squeeze(1) + logits_CV.logsumexp(dim=-1))
        # Not ``Tensor.std``, which takes 20 times as long on a processor.
        std.append(torch.linalg.vector_norm(logits_CV, dim=-1) / (logits_CV.shape[1] - 1) ** 0.5)
    log_z_N = torch.cat(log_z)
    return {
        "logits_mean": torch.cat(mean).mean(),
        "logits_std": torch.cat(std).mean(),
        "logits_absmax": torch.stack(absmax).max(),
        "log_z": log_z_N.mean(),
        "log_z_squared": log_z_N.square().mean(),
    }


def embedding(E_VD: Tensor) -> dict[str, Tensor]:
    """Size and shape of an embedding. Isotropy and singular values are left out where E is not finite."""
    row_norm_V = E_VD.norm(dim=1)
    mu_norm = E_VD.mean(dim=0).norm()
    found = {
        "mu_norm": mu_norm,
        "ratio_norm": mu_norm / row_norm_V.mean(),
        "row_norm_mean": row_norm_V.mean(),
        "row_norm_min": row_norm_V.min(),
        "row_norm_max": row_norm_V.max(),
    }
    if not E_VD.isfinite().all():
        return found
    # In float64, as its square root has half the digits of a small eigenvalue.
    E64_VD = E_VD.double()
    eigenvalues_D, eigenvectors_DD = torch.linalg.eigh(E64_VD.T @ E64_VD)
    singular_D = eigenvalues_D.clamp(min=0).sqrt()
    return found | {
        "isotropy": isotropy(E_VD, eigenvectors_DD.type_as(E_VD)),
        "singular_min": singular_D[0],
        "singular_max": singular_D[-1],
    }


def isotropy(E_VD: Tensor, eigenvectors_DD: Tensor) -> Tensor:
    """``min Z(c) / max Z(c)``, ``Z(c) = sum_i exp(e_i . c)``, c over the unit eigenvectors of ``EᵀE``; 1 is isotropic.

    Mu & Viswanath, 2018, equation 2. An eigenvector has no sign and Z does, so that c goes over both signs. In log
    space: at a mu norm of 100 the exponentials overflow.
    """
    along_VD = E_VD @ eigenvectors_DD
    log_z = torch.cat((along_VD.logsumexp(dim=0), along_VD.neg_().logsumexp(dim=0))).double()
    return (log_z.min() - log_z.max()).exp()


def b_ratio(E_VD: Tensor) -> Tensor:
    """``max(|mu|² - min a, max a - |mu|²) / max(-min a, max a)``, ``a_i = e_i . mu``: arXiv 2601.02031.

    The bound on the logits along mu after centering over the one before; below 1, centering tightens it.
    """
    mu_D = E_VD.mean(dim=0)
    a_V = E_VD @ mu_D
    low, high, square = a_V.min(), a_V.max(), mu_D.square().sum()
    return torch.maximum(square - low, high - square) / torch.maximum(-low, high)


def _hook(module: nn.Module, look: Callable[..., None]) -> Any:
    """A context in which ``look`` sees every output of ``module``, a tensor or several."""

    def see(_module: nn.Module, _inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        look(*(tensor.float() for tensor in (output if isinstance(output, tuple) else (output,))))

    return module.register_forward_hook(see)


def _sizes(found: dict[str, Tensor], name: str, i: int) -> Callable[[Tensor], None]:
    """RMS of all elements, and mean over tokens of the L2 norm, of an output ``(B, T, features)``."""

    def look(output: Tensor) -> None:
        norm_BT = output.norm(dim=-1)
        found[f"{name}_rms/{i}"] = norm_BT.norm() / output.numel() ** 0.5
        found[f"{name}_norm/{i}"] = norm_BT.mean()

    return look


def _attention_logit_max(q_BTHK: Tensor, k_BTHK: Tensor) -> Tensor:
    """The largest ``q . k / sqrt(K)`` over all queries and the keys that each may see.

    Before any cap and any temperature, so that it can grow, and means the same, in every attention norm.
    """
    T, K = q_BTHK.shape[1], q_BTHK.shape[-1]
    future_TT = torch.ones(T, T, dtype=torch.bool, device=q_BTHK.device).triu(1)
    largest = []
    # A sequence at a time, as its logits (H, T, T) are large.
    for q_HTK, k_HKT in zip(q_BTHK.transpose(1, 2), k_BTHK.permute(0, 2, 3, 1), strict=True):
        logits_HTT = q_HTK @ k_HKT * K**-0.5
        largest.append(logits_HTT.masked_fill_(future_TT, -math.inf).max())
    return torch.stack(largest).max()

"""Causal attention with each softmax of the attention-norm registry: ``(q, k, v) -> y``, all ``(B, H, T, K)``.

Legend: B sequences, H attention heads, T tokens a sequence, K width of a head, C queries of a chunk, S keys up to the
last of these queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.attention_norms import ATTENTION_CAP, CLIP_GAMMA, CLIP_ZETA, TEMPERATURE, Softmax

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
MIN_CHUNK_QUERIES = 128
"""Queries of a chunk of unfused attention. A chunk omits the keys that none of its queries may attend to. With 1,024
tokens on a CPU, chunks take 0.3 times as long as the whole at once, and hold half of ``(T, T)``."""
MAX_CHUNKS = 8
"""Chunks of a sequence; compilation unrolls them."""
MAX_FLEX_HEAD_WIDTH = 256
"""Maximum width of a head in FlexAttention."""


def plain(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    if torch.compiler.is_compiling() and q_BHTK.device.type == "cpu" and q_BHTK.shape[2] <= MIN_CHUNK_QUERIES:
        return _unfused(q_BHTK, k_BHTK, v_BHTK)
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)


def _unfused(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Two batched products and a softmax, which the compiler fuses. With 64 tokens this takes half as long as the fused
    kernel, which is designed for long sequences."""
    T, K = q_BHTK.shape[-2:]
    future_TT = torch.ones(T, T, dtype=torch.bool, device=q_BHTK.device).triu(1)
    z_BHTT = (q_BHTK @ k_BHTK.transpose(-1, -2)) * K**-0.5
    return torch.softmax(z_BHTT.masked_fill(future_TT, -torch.inf), dim=-1) @ v_BHTK


def temperature(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    scale = TEMPERATURE * q_BHTK.shape[-1] ** -0.5
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=scale)


def cap(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """``softmax(c tanh(z / c))``: arXiv 2408.00118 (Gemma 2), section 2."""
    if q_BHTK.device.type == "cuda" and torch.compiler.is_compiling() and q_BHTK.shape[-1] <= MAX_FLEX_HEAD_WIDTH:
        return flex_cap(q_BHTK, k_BHTK, v_BHTK)

    def capped_softmax(z_BHCS: Tensor, future_CS: Tensor) -> Tensor:
        z_BHCS = ATTENTION_CAP * torch.tanh(z_BHCS / ATTENTION_CAP)
        return torch.softmax(z_BHCS.masked_fill(future_CS, -torch.inf), dim=-1)

    return _chunked(capped_softmax, q_BHTK, k_BHTK, v_BHTK)


def flex_cap(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """``cap`` with FlexAttention, which ``torch.compile`` turns into one kernel that never stores the logits."""
    from torch.nn.attention.flex_attention import (  # imports the compiler, which takes seconds
        create_block_mask,
        flex_attention,
    )

    T = q_BHTK.shape[2]

    def capped(z: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ATTENTION_CAP * torch.tanh(z / ATTENTION_CAP)

    def is_causal(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    mask = create_block_mask(is_causal, None, None, T, T, device=q_BHTK.device)
    return flex_attention(q_BHTK, k_BHTK, v_BHTK, score_mod=capped, block_mask=mask)


def clip(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """``clip((zeta - gamma) softmax(z) + gamma, 0, 1)``, without renormalization: arXiv 2306.12929, equation 4.

    A future key has softmax 0 and, because gamma is negative, weight 0.
    """

    def clipped_softmax(z_BHCS: Tensor, future_CS: Tensor) -> Tensor:
        p_BHCS = torch.softmax(z_BHCS.masked_fill(future_CS, -torch.inf), dim=-1)
        return (p_BHCS * (CLIP_ZETA - CLIP_GAMMA) + CLIP_GAMMA).clamp(0.0, 1.0)

    return _chunked(clipped_softmax, q_BHTK, k_BHTK, v_BHTK)


def _chunked(weights: Callable[[Tensor, Tensor], Tensor], q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Attention with ``weights``, a function of the logits ``(B, H, C, S)`` and the mask of future keys ``(C, S)``.

    ``scaled_dot_product_attention`` supports neither map, and FlexAttention supports only the cap, without a backward
    pass on CPUs.
    """
    y = []
    for start, stop in query_chunks(q_BHTK.shape[2]):
        weights_BHCS = weights(*chunk_logits(q_BHTK, k_BHTK, start, stop))
        y.append(weights_BHCS.type_as(v_BHTK) @ v_BHTK[:, :, :stop])
    return torch.cat(y, dim=2)


def chunk_logits(q_BHTK: Tensor, k_BHTK: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Returns the logits of a chunk of queries, ``(B, H, C, S)``, and the mask of their future keys, ``(C, S)``.

    Autocast is off, because it would round the logits to bfloat16, which the fused kernels do not.
    """
    wide = torch.promote_types(q_BHTK.dtype, torch.float32)
    with torch.autocast(q_BHTK.device.type, enabled=False):
        q_BHCK, k_BHSK = q_BHTK[:, :, start:stop].to(wide), k_BHTK[:, :, :stop].to(wide)
        z_BHCS = q_BHCK @ k_BHSK.transpose(-1, -2) * q_BHTK.shape[-1] ** -0.5
    return z_BHCS, torch.ones(stop - start, stop, dtype=torch.bool, device=q_BHTK.device).triu(start + 1)


def query_chunks(T: int) -> Iterator[tuple[int, int]]:
    """Yields the start and the end of each chunk of queries."""
    C = max(MIN_CHUNK_QUERIES, -(-T // MAX_CHUNKS))
    for start in range(0, T, C):
        yield start, min(start + C, T)


ATTENTIONS: dict[Softmax, Attend] = {"plain": plain, "cap": cap, "temperature": temperature, "clip": clip}

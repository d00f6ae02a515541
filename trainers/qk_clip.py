"""QK-clip: arXiv 2507.20534 (Kimi K2), section 2.1, with its alpha of 1/2.

After an optimizer step, the weights of Q and K of each head whose largest attention logit in the step's batch exceeded
tau are multiplied by ``sqrt(tau / largest)``, so that on the same batch the largest logit would be tau. It takes effect
on the weights alone: attention is plain, and so is its gradient.

Legend: as in ``trainers.attention``, and L attention layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from search_spaces.attention_norms import QK_CLIP_TAU
from trainers.attention import chunk_logits, query_chunks
from trainers.world import World


class QKClip(nn.Module):
    """Remembers the largest attention logit of each head over the forward passes of a step.

    The logits are computed a second time for that, because fused attention kernels do not return them.
    """

    largest_H: Tensor

    def __init__(self, H: int) -> None:
        super().__init__()
        self.register_buffer("largest_H", torch.zeros(H), persistent=False)

    @torch.no_grad()
    def observe(self, q_BHTK: Tensor, k_BHTK: Tensor) -> None:
        self.largest_H.copy_(torch.maximum(self.largest_H, largest_logits(q_BHTK, k_BHTK)))

    @torch.no_grad()
    def clip(self, qkv_weight: Tensor, halted: Tensor) -> None:
        """Scales Q and K of each head in place, unless halted.

        Args:
            qkv_weight: ``(3 D, D)``, the heads of Q, K and V.
        """
        H = len(self.largest_H)
        factor_H = (QK_CLIP_TAU / self.largest_H.clamp(min=QK_CLIP_TAU)).sqrt()
        factor_H = torch.where(halted > 0, 1.0, factor_H)
        qkv_weight.view(3, H, -1, qkv_weight.shape[1])[:2].mul_(factor_H[:, None, None])


def share_largest_logits(clips: Sequence[QKClip], world: World) -> None:
    """Replaces the largest logits on this rank by those over all ranks."""
    if clips:
        largest_LH = world.max(torch.stack([clip.largest_H for clip in clips]))
        for clip, largest_H in zip(clips, largest_LH, strict=True):
            clip.largest_H.copy_(largest_H)


def largest_logits(q_BHTK: Tensor, k_BHTK: Tensor) -> Tensor:
    """Returns the largest ``q . k / sqrt(K)`` of each head, ``(H,)``, over the keys that each query may attend to."""
    largest = []
    for start, stop in query_chunks(q_BHTK.shape[2]):
        z_BHCS, future_CS = chunk_logits(q_BHTK, k_BHTK, start, stop)
        largest.append(z_BHCS.masked_fill(future_CS, -torch.inf).amax(dim=(0, 2, 3)))
    return torch.stack(largest).amax(dim=0)

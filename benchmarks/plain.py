"""A straightforward implementation of the model of arXiv 2601.02031 with torch's own modules.

It shares no code with ``trainers``: it is the baseline for the trainer's speed, and an independent check of its
results. Structure and positions are those of the published code: one matrix for queries, keys and values, separate
norms for queries and keys, and a SwiGLU of three matrices.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.scales import Scale


class Attention(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, D: int, H: int, T: int) -> None:
        super().__init__()
        self.H, self.R = H, D // H // 2
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.q_norm = nn.LayerNorm(D // H, bias=False)
        self.k_norm = nn.LayerNorm(D // H, bias=False)
        self.proj = nn.Linear(D, D, bias=False)
        frequency = 10_000.0 ** -(torch.arange(0, self.R, 2) / self.R)
        angle_TR = torch.outer(torch.arange(T), frequency).repeat_interleave(2, dim=-1)
        self.register_buffer("cos", angle_TR.cos(), persistent=False)
        self.register_buffer("sin", angle_TR.sin(), persistent=False)

    def rotate(self, x_BHTK: Tensor) -> Tensor:
        turning, still = x_BHTK[..., : self.R], x_BHTK[..., self.R :]
        first, second = turning[..., ::2], turning[..., 1::2]
        quarter = torch.stack((-second, first), dim=-1).flatten(-2)
        return torch.cat((turning * self.cos + quarter * self.sin, still), dim=-1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = (x.view(B, T, self.H, D // self.H).transpose(1, 2) for x in self.qkv(x_BTD).split(D, dim=-1))
        q, k = self.rotate(self.q_norm(q)).type_as(v), self.rotate(self.k_norm(k)).type_as(v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.proj(y.transpose(1, 2).contiguous().view(B, T, D)))


class SwiGLU(nn.Module):
    def __init__(self, D: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(D, hidden, bias=False)
        self.up = nn.Linear(D, hidden, bias=False)
        self.down = nn.Linear(hidden, D, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD)))


class Block(nn.Module):
    def __init__(self, scale: Scale, T: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(scale.D, bias=False)
        self.attention = Attention(scale.D, scale.H, T)
        self.norm2 = nn.LayerNorm(scale.D, bias=False)
        self.mlp = SwiGLU(scale.D, scale.hidden)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD))
        return cast(Tensor, x_BTD + self.mlp(self.norm2(x_BTD)))


class PlainGPT(nn.Module):
    """Tokens ``(B, T)`` to logits ``(B, T, V)``."""

    def __init__(self, scale: Scale, V: int, T: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, scale.D)
        self.blocks = nn.ModuleList(Block(scale, T) for _ in range(scale.L))
        self.norm = nn.LayerNorm(scale.D, bias=False)
        self.lm_head = nn.Linear(scale.D, V, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return cast(Tensor, self.lm_head(self.norm(x_BTD)))

    @torch.no_grad()
    def take(self, weights: dict[str, Tensor]) -> None:
        """Loads the trainer's weights, some of which have other names here."""
        own = {}
        for name, weight in weights.items():
            name = name.replace(".qk.", ".").replace("mlp.fc2", "mlp.down")
            if "mlp.fc1" in name:
                gate, up = weight.chunk(2)
                own |= {name.replace("fc1", "gate"): gate, name.replace("fc1", "up"): up}
            else:
                own[name] = weight
        self.load_state_dict(own)

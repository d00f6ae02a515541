"""The GPT of the published runs (arXiv 2601.02031): pre-LN, qk-norm, rotary positions on half of each head, SwiGLU;
and the same with any other attention norm of the registry.

Legend:
  B  sequences       T  tokens a sequence    V  vocabulary with padding
  D  model width     H  attention heads      K  width of a head, D / H
  F  width of the SwiGLU                     R  rotated dimensions of a head, K / 2
  C  queries and keys side by side, 2D
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT, AttentionNorm, layer_scale
from search_spaces.cell import ModelSpec
from search_spaces.scales import Scale
from trainers.attention import ATTENTIONS
from trainers.matmul import Linear
from trainers.sigma_reparam import SigmaLinear

ROPE_BASE = 10_000.0
NORMAL_STD = 0.02


def rope_tables(T: int, R: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each ``(T, 1, 1, R / 2)``, of position times frequency (arXiv 2104.09864, equation 15)."""
    frequency = ROPE_BASE ** -(torch.arange(0, R, 2, dtype=torch.float64) / R)
    angle = torch.outer(torch.arange(T, dtype=torch.float64), frequency)[:, None, None, :]
    return angle.cos().float(), angle.sin().float()


class QueryKey(nn.Module):
    """Norm, where the variant has one, and positions of queries and keys: ``(B, T, 2, H, K) -> (B, T, 2, H, K)``.

    A module of its own so that a forward hook sees exactly what attention multiplies.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, K: int, T: int, norms: bool = True) -> None:
        super().__init__()
        self.K = K
        # One dimension, so that weight decay leaves it alone as it does every other norm.
        self.scale = nn.Parameter(torch.ones(2 * K)) if norms else None
        cos, sin = rope_tables(T, K // 2)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, qk_BT2HK: Tensor) -> Tensor:
        T, R = qk_BT2HK.shape[1], self.K // 2
        x = qk_BT2HK
        if self.scale is not None:
            x = F.layer_norm(x, (self.K,)) * self.scale.view(2, 1, self.K)
        cos, sin = self.cos[:T], self.sin[:T]
        a, b, rest = torch.split(x, [R // 2, R // 2, self.K - R], dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).type_as(qk_BT2HK)


def linear(norm: AttentionNorm, inputs: int, outputs: int, parts: int = 1) -> nn.Linear:
    """A layer of a block; ``parts`` matrices are side by side in its weight."""
    return SigmaLinear(inputs, outputs, parts) if norm.sigma_reparam else Linear(inputs, outputs)


class Attention(nn.Module):
    def __init__(self, D: int, H: int, T: int, norm: AttentionNorm) -> None:
        super().__init__()
        self.H = H
        self.qkv = linear(norm, D, 3 * D, 3)
        self.qk = QueryKey(D // H, T, norm.norms_qk)
        self.v_norm = nn.LayerNorm(D // H, bias=False) if norm.norms_v else nn.Identity()
        self.attend = ATTENTIONS[norm.softmax]
        self.proj = linear(norm, D, D)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qk_BTC, v_BTD = torch.split(self.qkv(x_BTD), [2 * D, D], dim=-1)
        q_BHTK, k_BHTK = self.qk(qk_BTC.reshape(B, T, 2, self.H, D // self.H)).permute(2, 0, 3, 1, 4)
        v_BTHK = self.v_norm(v_BTD.view(B, T, self.H, D // self.H)).type_as(v_BTD)
        y_BHTK = self.attend(q_BHTK, k_BHTK, v_BTHK.transpose(1, 2))
        return cast(Tensor, self.proj(y_BHTK.transpose(1, 2).reshape(B, T, D)))


class SwiGLU(nn.Module):
    """``FC2(silu(gate) * up)`` with gate and up one matrix, FC1 (arXiv 2002.05202, section 2)."""

    def __init__(self, D: int, hidden: int, norm: AttentionNorm) -> None:
        super().__init__()
        self.fc1 = linear(norm, D, 2 * hidden, 2)
        self.fc2 = linear(norm, hidden, D)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.fc1(x_BTD).chunk(2, dim=-1)
        return cast(Tensor, self.fc2(F.silu(gate_BTF) * up_BTF))


class LayerScale(nn.Module):
    """A learned factor for each channel: arXiv 2103.17239 (CaiT), section 2."""

    def __init__(self, D: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(D))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.scale


class Block(nn.Module):
    """Attention and SwiGLU, each on its residual branch, with the norms that the variant has."""

    def __init__(self, scale: Scale, T: int, dropout: float, norm: AttentionNorm) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(scale.D, bias=False) if norm.pre_norm else nn.Identity()
        self.attention = Attention(scale.D, scale.H, T, norm)
        self.out1 = self._out(scale.D, norm)
        self.post_norms_mlp = norm.post_norms_mlp
        self.norm2 = nn.LayerNorm(scale.D, bias=False)
        self.mlp = SwiGLU(scale.D, scale.hidden, norm)
        self.out2 = self._out(scale.D, norm)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    @staticmethod
    def _out(D: int, norm: AttentionNorm) -> nn.Module:
        """What a branch ends with."""
        if norm.norms_outputs:
            return nn.LayerNorm(D, bias=False)
        return LayerScale(D) if norm.layer_scale else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.out1(self.attention(self.norm1(x_BTD))))
        if self.post_norms_mlp:
            return cast(Tensor, self.norm2(x_BTD + self.dropout(self.out2(self.mlp(x_BTD)))))
        return cast(Tensor, x_BTD + self.dropout(self.out2(self.mlp(self.norm2(x_BTD)))))


class GPT(nn.Module):
    """Tokens ``(B, T)`` to final hidden states ``h_BTD``; the logits, ``h Eᵀ``, are ``trainers.head``'s business.

    The constructor allocates; ``reset_parameters`` gives the values.
    """

    def __init__(self, scale: Scale, spec: ModelSpec, V: int, T: int, attention_norm: str = DEFAULT) -> None:
        super().__init__()
        self.scale, self.spec = scale, spec
        self.embedding = nn.Embedding(V, scale.D)
        norm = ATTENTION_NORMS[attention_norm]
        self.blocks = nn.ModuleList(Block(scale, T, spec.dropout, norm) for _ in range(scale.L))
        self.norm = nn.LayerNorm(scale.D, bias=False)
        self.lm_head = None if spec.tied else nn.Linear(scale.D, V, bias=False)
        self._reparametrized = [module for module in self.modules() if isinstance(module, SigmaLinear)]

    @property
    def E_VD(self) -> Tensor:
        """The output embedding."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    @property
    def input_embedding_VD(self) -> Tensor:
        return self.embedding.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return cast(Tensor, self.norm(x_BTD))

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Fresh values in place, the same on every device and rank: they are drawn on the processor."""
        generator = torch.Generator().manual_seed(seed)
        for matrix, std in self._initial():
            matrix.copy_(torch.empty(matrix.shape).normal_(0.0, std, generator=generator))
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
        for module in self.modules():
            if isinstance(module, LayerScale):
                module.scale.fill_(layer_scale(self.scale.L))
        for linear in self._reparametrized:
            linear.start()

    def after_step(self) -> None:
        """What follows the optimizer's step: the norms of the new matrices, where the variant divides by them."""
        for linear in self._reparametrized:
            linear.iterate()

    def _initial(self) -> Iterator[tuple[Tensor, float]]:
        """Every matrix with its standard deviation; fused ones part by part, as their fans are the parts'."""
        std: Callable[[Tensor], float] = xavier_std if self.spec.init == "xavier" else lambda _: NORMAL_STD
        residual_std = NORMAL_STD / (2 * self.scale.L) ** 0.5
        yield self.embedding.weight, self.scale.D**-0.5
        for module in self.blocks:
            block = cast(Block, module)
            yield from ((part, std(part)) for part in block.attention.qkv.weight.chunk(3))
            yield block.attention.proj.weight, residual_std
            yield from ((part, std(part)) for part in block.mlp.fc1.weight.chunk(2))
            yield block.mlp.fc2.weight, residual_std
        if self.lm_head is not None:
            # A linear layer like the others: the published losses at initialisation, ln V + 0.004 at 16M (10.83) and
            # + 0.02 at 221M, belong to Xavier's standard deviation; 1 / sqrt(D) would give ln V + 0.5.
            yield self.lm_head.weight, std(self.lm_head.weight)


def xavier_std(matrix: Tensor) -> float:
    """Glorot & Bengio, 2010, equation 12, for a normal distribution."""
    return float((2.0 / sum(matrix.shape)) ** 0.5)

"""The GPT of the published runs (arXiv 2601.02031): pre-LN, qk-norm, rotary positions on half of each head, SwiGLU;
or the same model with another attention norm of the registry, or in another parametrization.

Legend:
  B  sequences       T  tokens a sequence    V  vocabulary with padding
  D  model width     H  attention heads      K  width of a head, D / H
  F  width of the SwiGLU                     R  rotated dimensions of a head, K / 2
  P  pairs of dimensions of a head, K / 2    G  heads of queries, keys and values together, 3H
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT, AttentionNorm, layer_scale
from search_spaces.scales import Scale
from search_spaces.training_spec import ModelSpec
from trainers.attention import ATTENTIONS
from trainers.matmul import Linear
from trainers.parametrization import HiddenMatrix, Widths
from trainers.qk_clip import QKClip
from trainers.sigma_reparam import SigmaLinear

ROPE_BASE = 10_000.0
NORMAL_STD = 0.02


def rotary_cos_sin(T: int, K: int) -> Tensor:
    """Returns cosine and sine of each pair's angle, ``(T, 1, P, 2)``. The angle is position times frequency for the
    first R / 2 pairs of a head (arXiv 2104.09864, equation 15) and zero for the others."""
    R = K // 2
    frequency_P = torch.zeros(K // 2, dtype=torch.float64)
    frequency_P[: R // 2] = ROPE_BASE ** -(torch.arange(0, R, 2, dtype=torch.float64) / R)
    angle_T1P = torch.outer(torch.arange(T, dtype=torch.float64), frequency_P)[:, None]
    return torch.stack((angle_T1P.cos(), angle_T1P.sin()), dim=-1).float()


def apply_rotary_emb(x_BTHK: Tensor, cos_sin_T1P2: Tensor) -> Tensor:
    """Rotates each pair of adjacent dimensions of ``x`` by its angle."""
    pairs_BTHP2 = x_BTHK.view(*x_BTHK.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():  # the compiler fuses real arithmetic but not complex arithmetic
        (a, b), (cos, sin) = pairs_BTHP2.unbind(-1), cos_sin_T1P2.unbind(-1)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs_BTHP2) * torch.view_as_complex(cos_sin_T1P2)).flatten(-2)


def layer_norm(width: int, used: bool = True) -> nn.Module:
    """Returns a LayerNorm without a bias, or nothing in its place."""
    return nn.LayerNorm(width, bias=False) if used else nn.Identity()


class QueryKey(nn.Module):
    """Norms, if the variant has them, and rotary positions of queries and keys, each ``(B, T, H, K)``.

    It is a separate module so that a forward hook sees exactly what attention multiplies.
    """

    cos_sin_T1P2: Tensor

    def __init__(self, K: int, T: int, norms: bool = True, q_factor: float = 1.0) -> None:
        super().__init__()
        self.q_factor = q_factor
        self.q_norm, self.k_norm = layer_norm(K, norms), layer_norm(K, norms)
        self.register_buffer("cos_sin_T1P2", rotary_cos_sin(T, K), persistent=False)

    def forward(self, q_BTHK: Tensor, k_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        q_rotated, k_rotated = self._rotate(self.q_norm(q_BTHK)), self._rotate(self.k_norm(k_BTHK))
        if self.q_factor != 1.0:
            q_rotated = q_rotated * self.q_factor
        return q_rotated.type_as(q_BTHK), k_rotated.type_as(k_BTHK)

    def _rotate(self, x_BTHK: Tensor) -> Tensor:
        wide = torch.promote_types(x_BTHK.dtype, torch.float32)
        return apply_rotary_emb(x_BTHK.to(wide), self.cos_sin_T1P2[: x_BTHK.shape[1]])


def make_linear(norm: AttentionNorm, inputs: int, outputs: int, parts: int = 1) -> nn.Linear:
    """Returns a linear layer of a block. Its weight holds ``parts`` matrices."""
    return SigmaLinear(inputs, outputs, parts) if norm.sigma_reparam else Linear(inputs, outputs)


class Attention(nn.Module):
    def __init__(self, D: int, H: int, T: int, norm: AttentionNorm, q_factor: float = 1.0) -> None:
        super().__init__()
        self.H = H
        self.qkv = make_linear(norm, D, 3 * D, 3)
        self.qk = QueryKey(D // H, T, norm.norms_qk, q_factor)
        self.qk_clip = QKClip(H) if norm.qk_clip else None
        self.v_norm = layer_norm(D // H, norm.norms_v)
        self.attend = ATTENTIONS[norm.softmax]
        self.proj = make_linear(norm, D, D)

    def forward(self, x_BTD: Tensor) -> Tensor:
        heads_BTGK = self.qkv(x_BTD).unflatten(-1, (3 * self.H, -1))
        q_BTHK, k_BTHK, v_BTHK = heads_BTGK.chunk(3, dim=2)
        q_BTHK, k_BTHK = self.qk(q_BTHK, k_BTHK)
        v_BTHK = self.v_norm(v_BTHK).type_as(v_BTHK)
        q_BHTK, k_BHTK = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2)
        if self.qk_clip is not None and self.training:
            self.qk_clip.observe(q_BHTK, k_BHTK)
        y_BHTK = self.attend(q_BHTK, k_BHTK, v_BTHK.transpose(1, 2))
        return cast(Tensor, self.proj(y_BHTK.transpose(1, 2).flatten(2)))


class SwiGLU(nn.Module):
    """``FC2(silu(gate) * up)`` with gate and up one matrix, FC1 (arXiv 2002.05202, section 2)."""

    def __init__(self, D: int, hidden: int, norm: AttentionNorm) -> None:
        super().__init__()
        self.fc1 = make_linear(norm, D, 2 * hidden, 2)
        self.fc2 = make_linear(norm, hidden, D)

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
    """Attention and SwiGLU, each on a residual branch, with the norms of the variant."""

    def __init__(self, scale: Scale, T: int, dropout: float, norm: AttentionNorm, q_factor: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(scale.D, norm.pre_norm)
        self.attention = Attention(scale.D, scale.H, T, norm, q_factor)
        self.out1 = self._branch_norm(scale.D, norm)
        self.mlp_norm = norm.mlp_norm
        self.norm2 = layer_norm(scale.D, norm.mlp_norm != "none")
        self.mlp = SwiGLU(scale.D, scale.hidden, norm)
        self.out2 = self._branch_norm(scale.D, norm)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    @staticmethod
    def _branch_norm(D: int, norm: AttentionNorm) -> nn.Module:
        """The norm or the scale at the end of a residual branch."""
        return LayerScale(D) if norm.layer_scale else layer_norm(D, norm.norms_outputs)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.out1(self.attention(self.norm1(x_BTD))))
        if self.mlp_norm == "sum":
            return cast(Tensor, self.norm2(x_BTD + self._feed_forward(x_BTD)))
        h_BTD = self.norm2(x_BTD)
        return (h_BTD if self.mlp_norm == "stream" else x_BTD) + self._feed_forward(h_BTD)

    def _feed_forward(self, x_BTD: Tensor) -> Tensor:
        return cast(Tensor, self.dropout(self.out2(self.mlp(x_BTD))))


class GPT(nn.Module):
    """Tokens ``(B, T)`` to final hidden states ``h_BTD``; ``trainers.head`` computes the logits, ``h Eᵀ``.

    The constructor allocates the parameters; ``reset_parameters`` initializes them.
    """

    def __init__(
        self,
        scale: Scale,
        spec: ModelSpec,
        V: int,
        T: int,
        attention_norm: str = DEFAULT,
        base: Scale | None = None,
    ) -> None:
        """
        Args:
            base: the base of mup (``trainers.parametrization``). Default: the standard parametrization.
        """
        super().__init__()
        self.scale, self.spec, self.base = scale, spec, base or scale
        self.widths = Widths.of(scale, self.base)
        self.embedding = nn.Embedding(V, scale.D, _weight=torch.empty(V, scale.D))
        norm = ATTENTION_NORMS[attention_norm]
        q_factor = self.widths.K**-0.5
        self.blocks = nn.ModuleList(Block(scale, T, spec.dropout, norm.of_block(i), q_factor) for i in range(scale.L))
        self.norm = layer_norm(scale.D)
        self.lm_head = None if spec.tied else Linear(scale.D, V)
        self._reparametrized = [module for module in self.modules() if isinstance(module, SigmaLinear)]
        self.qk_clips = [module for module in self.modules() if isinstance(module, QKClip)]

    @property
    def E_VD(self) -> Tensor:
        """The output embedding."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    @property
    def input_embedding_VD(self) -> Tensor:
        return self.embedding.weight

    def forward(self, tokens_BT: Tensor, call: Callable[[Any, Tensor], Tensor] = nn.Module.__call__) -> Tensor:
        """
        Args:
            call: calls a block. A compiled ``Block.forward`` is compiled once for all blocks.
        """
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = call(block, x_BTD)
        h_BTD = cast(Tensor, self.norm(x_BTD))
        return h_BTD if self.widths.D == 1.0 else h_BTD / self.widths.D

    @property
    def typed_blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def hidden_matrices(self) -> Iterator[HiddenMatrix]:
        """Yields the weights of the linear layers of all blocks."""
        for block in self.typed_blocks:
            yield HiddenMatrix(block.attention.qkv.weight, 3, self.widths.D)
            yield HiddenMatrix(block.attention.proj.weight, 1, self.widths.D)
            yield HiddenMatrix(block.mlp.fc1.weight, 2, self.widths.D)
            yield HiddenMatrix(block.mlp.fc2.weight, 1, self.widths.F)

    @property
    def step_buffers(self) -> list[Tensor]:
        """The buffers that ``after_step`` updates."""
        return [linear.v_PI for linear in self._reparametrized]

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Initializes all values in place. They are drawn on the CPU, and so are the same on every device and rank."""
        generator = torch.Generator().manual_seed(seed)
        for matrix, std in self._initial_stds():
            matrix.copy_(torch.empty(matrix.shape).normal_(0.0, std, generator=generator))
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
        for module in self.modules():
            if isinstance(module, LayerScale):
                module.scale.fill_(layer_scale(self.scale.L))
        for linear in self._reparametrized:
            linear.init_singular_vectors()

    def before_step(self) -> None:
        """Forgets the attention logits of the last step."""
        for clip in self.qk_clips:
            clip.largest_H.zero_()

    def clip_qk(self, halted: Tensor) -> None:
        """Rescales queries and keys after an optimizer step, if the variant clips them."""
        for block in self.typed_blocks:
            if block.attention.qk_clip is not None:
                block.attention.qk_clip.clip(block.attention.qkv.weight, halted)

    def after_step(self) -> None:
        """Updates the estimated spectral norms of the matrices, if the variant divides by them."""
        for linear in self._reparametrized:
            linear.power_iteration()

    def _initial_stds(self) -> Iterator[tuple[Tensor, float]]:
        """Yields every matrix with its initial standard deviation, as in the published code at the base scale.

        Q, K and V have the fans of the one matrix that holds all three; gate and up each have their own. Of the two
        matrices that write to the residual stream, only attention's is scaled down with depth.
        """
        D, F, V = self.base.D, self.base.hidden, len(self.embedding.weight)
        std: Callable[[int, int], float] = xavier_std if self.spec.init == "xavier" else lambda *_: NORMAL_STD
        E_std = std(V, D)
        from_D, from_F = self.widths.D**-0.5, self.widths.F**-0.5
        yield self.embedding.weight, E_std if self.spec.tied else D**-0.5
        for block in self.typed_blocks:
            yield block.attention.qkv.weight, std(3 * D, D) * from_D
            yield block.attention.proj.weight, NORMAL_STD / (2 * self.scale.L) ** 0.5 * from_D
            yield from ((part, std(F, D) * from_D) for part in block.mlp.fc1.weight.chunk(2))
            yield block.mlp.fc2.weight, std(D, F) * from_F
        if self.lm_head is not None:
            yield self.lm_head.weight, E_std


def xavier_std(outputs: int, inputs: int) -> float:
    """Glorot & Bengio, 2010, equation 12, for a normal distribution."""
    return float((2.0 / (outputs + inputs)) ** 0.5)

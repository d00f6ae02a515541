"""The ladder of model scales.

Legend: L layers (blocks), D model width, H attention heads, V vocabulary with padding.
"""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.attention_norms import ATTENTION_NORMS, DEFAULT, AttentionNorm


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A model shape. The name of a published scale counts the parameters of the blocks and of one embedding."""

    name: str
    L: int  # blocks
    D: int  # model width
    H: int  # attention heads

    @property
    def hidden(self) -> int:
        """Hidden width of the SwiGLU: two thirds of 4D, rounded up to a multiple of 256."""
        return 256 * -(-(2 * 4 * self.D) // (3 * 256))

    def parameters(self, V: int, *, tied: bool = False, attention_norm: str = DEFAULT) -> int:
        """Number of trainable parameters, with both embeddings unless they are tied.

        A block has QKV and Proj (4 D^2), the three matrices of the SwiGLU, and the norms and factors of its attention
        norm. Norms on Q, K and V are one head wide. sigma-reparam has one factor for each of the seven matrices.
        """
        norms = [ATTENTION_NORMS[attention_norm].of_block(i) for i in range(self.L)]
        return sum(map(self._block_parameters, norms)) + self.D + V * self.D * (1 if tied else 2)

    def _block_parameters(self, norm: AttentionNorm) -> int:
        K = self.D // self.H
        D_wide = norm.pre_norm + (norm.mlp_norm != "none") + 2 * norm.norms_outputs + 2 * norm.layer_scale
        K_wide = 2 * norm.norms_qk + norm.norms_v
        return 4 * self.D**2 + 3 * self.D * self.hidden + D_wide * self.D + K_wide * K + 7 * norm.sigma_reparam

    def flops_per_token(self, V: int, T: int) -> float:
        """Forward and backward FLOPs per token, ``6 N + 12 L D T`` (arXiv 2204.02311, appendix B). N is the number of
        parameters with the default attention norm and without the input embedding, which is a lookup."""
        return 6.0 * (self.parameters(V) - V * self.D) + 12.0 * self.L * self.D * T


SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(name="nano", L=1, D=16, H=2),  # for CPUs: 100,000 steps in a minute or two
        Scale(name="tiny", L=2, D=64, H=4),  # for CPUs: seconds per run
        # For CPUs: growing width at equal depth and head width, each with a SwiGLU of exactly 8/3 D.
        Scale(name="w96", L=2, D=96, H=3),
        Scale(name="w192", L=2, D=192, H=6),
        Scale(name="w384", L=2, D=384, H=12),
        Scale(name="w768", L=2, D=768, H=24),
        Scale(name="5M", L=3, D=96, H=4),
        Scale(name="8M", L=4, D=128, H=4),
        Scale(name="10M", L=5, D=160, H=4),
        Scale(name="16M", L=6, D=224, H=4),
        Scale(name="23M", L=8, D=288, H=4),
        Scale(name="29M", L=9, D=320, H=4),
        Scale(name="37M", L=10, D=384, H=4),
        Scale(name="57M", L=12, D=480, H=4),
        Scale(name="85M", L=14, D=576, H=4),
        Scale(name="109M", L=15, D=640, H=4),
        Scale(name="149M", L=18, D=704, H=4),
        Scale(name="221M", L=21, D=832, H=4),
        Scale(name="347M", L=23, D=1024, H=4),  # from here on: only in the published code, no runs
        Scale(name="455M", L=26, D=1120, H=4),
        Scale(name="612M", L=26, D=1312, H=4),
        Scale(name="902M", L=30, D=1504, H=4),
    )
}

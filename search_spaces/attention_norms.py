"""The registry of attention norms: the norms, caps and factors of a block around attention and SwiGLU.

An entry lists the parts of a variant, and ``trainers.model`` builds a block from them. The study schema, plan, command
line, tables, figures and tests pick it up from here.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

DEFAULT = "qk-norm"
Softmax = Literal["plain", "cap", "temperature", "clip"]
MLPNorm = Literal["branch", "stream", "sum", "none"]

ATTENTION_CAP = 50.0
"""The cap ``c`` of the attention logits."""
TEMPERATURE = 0.5
"""A factor on the attention logits, unlike the usual temperature, which divides. As a divisor it would double the
logits that soft-temp is meant to keep small, and the published runs tolerate a higher learning rate with it. Losses of
``tiny`` after 250 steps at a learning rate of 0.03, mean of four seeds: factor 2.40, ``none`` 2.47, divisor 2.54."""
QK_CLIP_TAU = 100.0
"""The largest attention logit that qk-clip leaves as it is."""
CLIP_ZETA, CLIP_GAMMA = 1.03, -0.03
"""With more than 35 keys, uniform attention is clipped to zero: a head must prefer some keys to attend to any."""


def layer_scale(L: int) -> float:
    """Initial value of layer-scale in a model of ``L`` blocks (arXiv 2103.17239, section 2: up to 18, and 24)."""
    return 0.1 if L <= 18 else 1e-5


@dataclass(frozen=True)
class AttentionNorm:
    """One variant. Each field after its source is a part, relative to a pre-LN block."""

    name: str
    summary: str
    source: str
    _: KW_ONLY
    norms_qk: bool = False
    """LayerNorm on Q and K of each head, before the rotary embedding."""
    norms_v: bool = False
    """LayerNorm on V of each head."""
    pre_norm: bool = True
    """LayerNorm before attention."""
    norms_outputs: bool = False
    """LayerNorm after Proj and after FC2."""
    mlp_norm: MLPNorm = "branch"
    """Where the LayerNorm of the MLP acts. ``branch``: on the input of the MLP, ``x + MLP(LN(x))``; ``stream``: on the
    residual stream as well, ``h + MLP(h)`` with ``h = LN(x)``; ``sum``: on the sum, ``LN(x + MLP(x))``;
    ``none``: there is none, ``x + MLP(x)``."""
    first_pre_norm: bool = False
    """Block 0 is a pre-LN block, with a LayerNorm before attention and one on the input of the MLP."""
    softmax: Softmax = "plain"
    """``cap``: softmax of ``c * tanh(z / c)``; ``temperature``: softmax of ``0.5 * z``; ``clip``: softmax, stretched
    and clipped to 0 .. 1."""
    sigma_reparam: bool = False
    """Every matrix of a block (Q, K, V, Proj, gate, up, FC2) is ``gamma * W / sigma(W)``, where sigma is its largest
    singular value and gamma a learned scalar that starts at 1."""
    qk_clip: bool = False
    """After each step, the weights of Q and K of a head whose largest attention logit in the step's batch exceeded
    ``QK_CLIP_TAU`` are both multiplied by ``sqrt(QK_CLIP_TAU / largest)``."""
    layer_scale: bool = False
    """A learned factor per channel of a residual branch, initially ``layer_scale(L)``."""

    def of_block(self, i: int) -> AttentionNorm:
        """The variant of block ``i``, counted from 0."""
        return replace(self, pre_norm=True, mlp_norm="branch") if self.first_pre_norm and i == 0 else self


_QKV_NORM: dict[str, Any] = {"norms_qk": True, "norms_v": True, "pre_norm": False}
_REORDERED: dict[str, Any] = {"pre_norm": False, "mlp_norm": "none", "norms_outputs": True}

_VARIANTS = (
    AttentionNorm("none", "pre-LN block, no norm on Q and K", "Radford et al., 2019 (GPT-2)"),
    AttentionNorm(
        "qk-norm",
        "LN on Q and K of each head, before RoPE",
        "arXiv 2302.05442 (ViT-22B); arXiv 2309.14322",
        norms_qk=True,
    ),
    AttentionNorm(
        "qk-norm-cap",
        "qk-norm, and attention logits c * tanh(z / c), c = 50",
        "arXiv 2410.16682",
        norms_qk=True,
        softmax="cap",
    ),
    AttentionNorm(
        "qk-fc-norm", "qk-norm, and LN after Proj and FC2", "arXiv 2410.16682", norms_qk=True, norms_outputs=True
    ),
    AttentionNorm("qkv-norm", "LN on Q, K and V of each head, none before attention", "arXiv 2410.16682", **_QKV_NORM),
    AttentionNorm(
        "attn-cap", "attention logits c * tanh(z / c), c = 50", "arXiv 2408.00118 (Gemma 2), section 2", softmax="cap"
    ),
    AttentionNorm(
        "hybrid-norm",
        "qkv-norm, and h = LN(x), x = h + MLP(h)",
        "arXiv 2503.04598, released code",
        **_QKV_NORM,
        mlp_norm="stream",
    ),
    AttentionNorm(
        "hybrid-norm-star",
        "hybrid-norm, with a pre-LN block 0",
        "arXiv 2503.04598, released code",
        **_QKV_NORM,
        mlp_norm="stream",
        first_pre_norm=True,
    ),
    AttentionNorm(
        "hybrid-norm-post",
        "qkv-norm, and x = LN(x + MLP(x))",
        "arXiv 2503.04598, as in the paper",
        **_QKV_NORM,
        mlp_norm="sum",
    ),
    AttentionNorm(
        "sigma-reparam", "W = gamma * W / sigma(W) for every matrix of a block", "arXiv 2303.06296", sigma_reparam=True
    ),
    AttentionNorm(
        "layer-scale",
        "a learned factor per channel on each residual branch",
        "arXiv 2103.17239 (CaiT)",
        layer_scale=True,
    ),
    AttentionNorm(
        "soft-temp", "softmax temperature: attention logits times 0.5", "arXiv 2410.16682", softmax="temperature"
    ),
    AttentionNorm(
        "soft-clip",
        "clip((zeta - gamma) * softmax + gamma, 0, 1), zeta 1.03, gamma -0.03",
        "arXiv 2306.12929",
        softmax="clip",
    ),
    AttentionNorm(
        "qk-clip",
        "after a step, W_Q and W_K of a head times sqrt(tau / max logit) if it is above tau = 100",
        "arXiv 2507.20534 (Kimi K2), section 2.1",
        qk_clip=True,
    ),
    AttentionNorm(
        "reordered-norm",
        "LN after Proj and FC2, none before attention and MLP",
        "arXiv 2501.00656 (OLMo 2), without qk-norm",
        **_REORDERED,
    ),
    AttentionNorm(
        "reordered-qk-norm",
        "reordered-norm with qk-norm, as in OLMo 2",
        "arXiv 2501.00656 (OLMo 2)",
        **_REORDERED,
        norms_qk=True,
    ),
)
ATTENTION_NORMS = {variant.name: variant for variant in _VARIANTS}

"""Every attention norm against its float64 definition, which is written with loops, and in training steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny import cell
from torch import Tensor

from search_spaces.attention_norms import ATTENTION_NORMS, layer_scale
from search_spaces.cell import Cell
from search_spaces.methods import METHODS
from search_spaces.scales import SCALES
from search_spaces.training_spec import ModelSpec
from trainers import attention, diagnostics, micro_batch, qk_clip
from trainers.engine import Engine
from trainers.head import Objective
from trainers.model import GPT
from trainers.sigma_reparam import SigmaLinear
from trainers.world import World

WORLD = World.single()
V, T = 32, 7
HYBRID = {"hybrid-norm", "hybrid-norm-star", "hybrid-norm-post"}
V_NORM = {"qkv-norm", *HYBRID}
REORDERED = {"reordered-norm", "reordered-qk-norm"}
QK = {"qk-norm", "qk-norm-cap", "qk-fc-norm", "reordered-qk-norm", *V_NORM}
CAP = {"qk-norm-cap", "attn-cap"}
SMALL_TAU = 0.05
"""A tau of qk-clip that the logits of a tiny model exceed."""


def of(name: str, base: Cell) -> Cell:
    return base.model_copy(update={"attention_norm": name})


def gpt(name: str, T: int = T, *, spread: bool = True) -> GPT:
    """Returns a tiny float64 model with spread-out weights: no norm has scale 1, and caps and clips take effect."""
    model = GPT(SCALES["tiny"], ModelSpec(), V, T, name)
    model.reset_parameters(0)
    if spread:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.mul_(1 + 0.5 * torch.rand(parameter.shape, generator=generator))
            for block in model.blocks:
                block.attention.qkv.weight[: 2 * model.scale.D].mul_(6.0)
    model.double()
    for module in model.modules():
        if isinstance(module, SigmaLinear):
            module.init_singular_vectors()
    return model


def tokens_BT(T: int = T) -> Tensor:
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


def norm(x: Tensor, scale: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    return (x - mean) / ((x - mean) ** 2).mean(dim=-1, keepdim=True).add(1e-5).sqrt() * scale


def rope(x_TK: Tensor) -> Tensor:
    """Rotates the pair (2i, 2i + 1) of the first R = K/2 dimensions by t * 10000 ** (-2 i / R)."""
    R = x_TK.shape[1] // 2
    rows = []
    for t, x_K in enumerate(x_TK):
        turned = list(x_K)
        for i in range(R // 2):
            angle = t * 10_000.0 ** (-2 * i / R)
            cos, sin = (torch.tensor(f(angle)).float().double() for f in (math.cos, math.sin))  # as in the model
            a, b = x_K[2 * i], x_K[2 * i + 1]
            turned[2 * i], turned[2 * i + 1] = a * cos - b * sin, b * cos + a * sin
        rows.append(torch.stack(turned))
    return torch.stack(rows)


def formula(name: str, P: dict[str, Tensor], tokens_T: Tensor, scale: object = SCALES["tiny"]) -> Tensor:
    """Returns the final hidden states of one sequence, ``(T, D)``."""
    D, H, F = scale.D, scale.H, scale.hidden
    K = D // H

    def matrix(layer: str, part: int, parts: int) -> Tensor:
        W = P[f"{layer}.weight"].chunk(parts)[part]
        return P[f"{layer}.gamma"][part] * W / torch.linalg.matrix_norm(W, 2) if name == "sigma-reparam" else W

    def softmax(z: Tensor) -> Tensor:
        if name in CAP:
            z = 50 * torch.tanh(z / 50)
        if name == "soft-temp":
            z = 0.5 * z
        p = z.exp() / z.exp().sum()
        return torch.clip((1.03 + 0.03) * p - 0.03, 0, 1) if name == "soft-clip" else p

    def attended(x_TD: Tensor, block: str) -> Tensor:
        q_TD, k_TD, v_TD = (x_TD @ matrix(f"{block}.qkv", i, 3).T for i in range(3))
        heads = []
        for h in range(H):
            q_TK, k_TK, v_TK = (y[:, h * K : (h + 1) * K] for y in (q_TD, k_TD, v_TD))
            if name in QK:
                q_TK, k_TK = norm(q_TK, P[f"{block}.qk.q_norm.weight"]), norm(k_TK, P[f"{block}.qk.k_norm.weight"])
            if name in V_NORM:
                v_TK = norm(v_TK, P[f"{block}.v_norm.weight"])
            q_TK, k_TK = rope(q_TK), rope(k_TK)
            rows = [softmax(k_TK[: t + 1] @ q_TK[t] / K**0.5) @ v_TK[: t + 1] for t in range(len(x_TD))]
            heads.append(torch.stack(rows))
        return torch.cat(heads, dim=1) @ matrix(f"{block}.proj", 0, 1).T

    def swiglu(x_TD: Tensor, block: str) -> Tensor:
        gate, up = (x_TD @ matrix(f"{block}.fc1", i, 2).T for i in range(2))
        assert gate.shape[1] == F
        return (gate / (1 + (-gate).exp()) * up) @ matrix(f"{block}.fc2", 0, 1).T

    x = P["embedding.weight"][tokens_T]
    for i in range(scale.L):
        b = f"blocks.{i}"
        out = {
            **dict.fromkeys(("qk-fc-norm", *REORDERED), lambda y, k, b=b: norm(y, P[f"{b}.out{k}.weight"])),
            "layer-scale": lambda y, k, b=b: y * P[f"{b}.out{k}.scale"],
        }.get(name, lambda y, k: y)
        pre_norm = name not in V_NORM | REORDERED or (name == "hybrid-norm-star" and i == 0)
        before = norm(x, P[f"{b}.norm1.weight"]) if pre_norm else x
        x = x + out(attended(before, f"{b}.attention"), 1)
        if name == "hybrid-norm-post":
            x = norm(swiglu(x, f"{b}.mlp") + x, P[f"{b}.norm2.weight"])
        elif name in REORDERED:
            x = x + out(swiglu(x, f"{b}.mlp"), 2)
        elif name in HYBRID and not pre_norm:
            x = norm(x, P[f"{b}.norm2.weight"])
            x = swiglu(x, f"{b}.mlp") + x
        else:
            x = x + out(swiglu(norm(x, P[f"{b}.norm2.weight"]), f"{b}.mlp"), 2)
    return norm(x, P["norm.weight"])


@pytest.fixture(params=[3, 128], ids="chunks of {}".format)
def chunks(request, monkeypatch) -> None:
    monkeypatch.setattr(attention, "MIN_CHUNK_QUERIES", request.param)


@pytest.mark.parametrize("name", ATTENTION_NORMS)
def test_output_and_gradients_match_the_formula(name, chunks):
    model = gpt(name)
    got = model(tokens_BT())
    P = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    want = torch.stack([formula(name, P, tokens_T) for tokens_T in tokens_BT()])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    way_BTD = torch.randn(got.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    used = [n for n in P if n != "lm_head.weight"]
    found = torch.autograd.grad((got * way_BTD).sum(), [dict(model.named_parameters())[n] for n in used])
    expected = torch.autograd.grad((want * way_BTD).sum(), [P[n] for n in used])
    for n, a, b in zip(used, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8, msg=lambda m, n=n: f"{n}: {m}")


def test_every_variant_is_a_different_function():
    """Otherwise a cap or clip without any effect would pass as the plain softmax. qk-clip only acts after a step."""
    assert torch.equal(gpt("qk-clip")(tokens_BT()), gpt("none")(tokens_BT()))
    outputs = {name: gpt(name)(tokens_BT()) for name in ATTENTION_NORMS if name != "qk-clip"}
    for a in outputs:
        for b in outputs:
            assert a == b or float((outputs[a] - outputs[b]).detach().abs().max()) > 1e-4, (a, b)


@pytest.mark.parametrize("name", ATTENTION_NORMS)
def test_no_variant_sees_a_future_token(name, monkeypatch):
    """The gradient of the output at t with respect to the embedding of a later token is exactly zero."""
    monkeypatch.setattr(attention, "MIN_CHUNK_QUERIES", 5)
    model, embedded = gpt(name, 16, spread=False), []
    model.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output.requires_grad_()))
    h_BTD = model(tokens_BT(16))
    for t in (0, 4, 5, 15):
        (gradient_BTD,) = torch.autograd.grad(h_BTD[0, t].square().sum(), embedded[0], retain_graph=True)
        assert (gradient_BTD[0].abs().sum(dim=-1) > 0).tolist() == [s <= t for s in range(16)]


@pytest.mark.parametrize("scale", ["tiny", "16M", "902M"])
@pytest.mark.parametrize("name", ATTENTION_NORMS)
def test_parameter_count_matches_the_scale(name, scale):
    with torch.device("meta"):
        model = GPT(SCALES[scale], ModelSpec(tied=True), 50_304, T, name)
    counted = SCALES[scale].parameters(50_304, tied=True, attention_norm=name)
    assert sum(p.numel() for p in model.parameters()) == counted


@pytest.mark.parametrize("name", ["attn-cap", "soft-clip", "soft-temp", "none"])
def test_autocast_does_not_round_the_logits(name):
    attend = attention.ATTENTIONS[ATTENTION_NORMS[name].softmax]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 300, 16, generator=generator).mul(s).bfloat16() for s in (20, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        got = attend(q, k, v)
    assert got.dtype == torch.bfloat16
    exact = attend(q.double(), k.double(), v.double())
    # Rounding logits of about 50 to bfloat16 would change them by 0.1, and the weights by 10%.
    torch.testing.assert_close(got.double(), exact, rtol=2**-7, atol=2**-7)


def test_the_micro_batch_counts_the_memory_of_an_unfused_softmax():
    plain, capped = (Engine(of(n, cell(sequence_length=256)), WORLD, compile=False) for n in ("none", "attn-cap"))
    assert plain.key != capped.key, "the micro batch is cached under this key"
    heads_and_layers = 4 * 2
    more = micro_batch.saved_bytes(capped) - micro_batch.saved_bytes(plain)
    assert more > heads_and_layers * 256**2 * 4


@pytest.mark.parametrize("name", ATTENTION_NORMS)
def test_diagnostics_measure_every_variant(name):
    model = gpt(name).float()
    tokens_BU = torch.cat((tokens_BT(), tokens_BT()[:, :1]), dim=1)
    found = diagnostics.measure(Objective(model, "float32", "float32").eval(), tokens_BU, "baseline", torch.zeros(()))
    assert set(found) == set(diagnostics.keys(2)) - set(diagnostics.TRAINING)
    seen: dict[str, Any] = {}
    for layer in ("attention.proj", "mlp.fc2"):
        model.blocks[1].get_submodule(layer).register_forward_hook(lambda m, i, y, n=layer: seen.update({n: y}))
    model.blocks[0].attention.qk.register_forward_hook(lambda m, i, y: seen.update(qk=y))
    with torch.no_grad():
        model(tokens_BU[:, :-1])
    for layer, key in (("attention.proj", "proj_norm/1"), ("mlp.fc2", "fc2_norm/1")):
        assert found[key] == pytest.approx(float(seen[layer].norm(dim=-1).mean()), rel=1e-5)
    q_BTHK, k_BTHK = seen["qk"]
    raw = max(
        float(q_BTHK[b, t, h] @ k_BTHK[b, s, h]) / 4
        for b in range(2) for h in range(4) for t in range(T) for s in range(t + 1)
    )  # fmt: skip
    assert found["attention_logit_max"] >= raw - 1e-4
    if name == "attn-cap":
        assert found["attention_logit_max"] > 50, "the metric must use the logit before the cap"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ATTENTION_NORMS)
def test_a_step_with_every_head_method_is_finite_and_moves_every_parameter(tokens, name, tied):
    base = of(name, cell(model=ModelSpec(tied=tied)))
    engine = Engine(base, WORLD, compile=False)
    batch_BU = tokens.train.read(range(4), tiny.T)
    for method in METHODS.values():
        engine.reset(base.model_copy(update={"method": method.name, "gamma": method.gamma and 1e-2}))
        before = {n: p.detach().clone() for n, p in engine.objective.model.named_parameters()}
        assert engine.step(batch_BU, step=0, lr=1e-2, micro_batch=2).finite, method.name
        for n, p in engine.objective.model.named_parameters():
            assert p.isfinite().all(), (method.name, n)
            assert not torch.equal(p, before[n]), (method.name, n)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("lr", [1e-3, 1e-2])
@pytest.mark.parametrize("name", ATTENTION_NORMS)
def test_200_steps_at_two_learning_rates_learn(tokens, name, lr):
    """In the published runs of 830M every variant first diverges at 8e-3 or above; a tiny model tolerates 1e-2."""
    engine = Engine(of(name, cell(lr=lr)), WORLD, compile=False)
    losses = []
    for i in range(200):
        first = 4 * (i % 100)
        step = engine.step(tokens.train.read(range(first, first + 4), tiny.T), step=i, lr=lr, micro_batch=4)
        assert step.finite, i
        losses.append(step.loss)
    assert np.mean(losses[-20:]) < losses[0] - 1


def layers(engine: Engine) -> list[SigmaLinear]:
    return [module for module in engine.objective.modules() if isinstance(module, SigmaLinear)]


def test_sigma_reparam_starts_at_1_and_follows_the_weights(tokens):
    """The largest singular value of every matrix must be gamma: exactly at first, approximately after steps with a high
    learning rate."""
    engine = Engine(of("sigma-reparam", cell()), WORLD, compile=False)
    for steps, tolerance in ((0, 1e-5), (30, 0.05)):
        for i in range(steps):
            assert engine.step(tokens.train.read(range(4), tiny.T), step=i, lr=1e-2, micro_batch=4).finite
        for layer in layers(engine):
            exact_P = torch.linalg.matrix_norm(layer.weight_POI.detach().double(), 2)
            estimated_P = (layer.weight_POI.detach() @ layer.v_PI[:, :, None]).norm(dim=(1, 2)).double()
            torch.testing.assert_close(estimated_P, exact_P, rtol=tolerance, atol=0)
    assert [len(layer.gamma) for layer in layers(engine)] == [3, 1, 2, 1] * 2


def test_sigma_reparam_iterates_once_per_step_and_never_in_a_forward_pass(tokens, tmp_path):
    engine = Engine(of("sigma-reparam", cell()), WORLD, compile=False)
    start = [layer.v_PI.clone() for layer in layers(engine)]
    engine.dry_run_step(2)
    engine.loss(torch.from_numpy(tokens.train.read(range(4), tiny.T).astype(np.int64)), 2)
    assert all(torch.equal(layer.v_PI, v) for layer, v in zip(layers(engine), start, strict=True))
    engine.step(tokens.train.read(range(4), tiny.T), step=0, lr=1e-2, micro_batch=1)
    for layer, v_PI in zip(layers(engine), start, strict=True):
        for W_OI, v_I, got_I in zip(layer.weight_POI.detach(), v_PI, layer.v_PI, strict=True):
            want_I = W_OI.T @ (W_OI @ v_I)
            torch.testing.assert_close(got_I, want_I / want_I.norm())


def test_layer_scale_starts_as_in_the_paper():
    assert [layer_scale(L) for L in (2, 18, 21, 24)] == [0.1, 0.1, 1e-5, 1e-5]
    model = gpt("layer-scale", spread=False)
    found = torch.cat([block.get_parameter(f"out{k}.scale") for block in model.blocks for k in (1, 2)])
    assert torch.equal(found.float(), torch.full((4 * 64,), 0.1))


def test_soft_clip_sets_small_weights_to_zero():
    """Masked and small weights are exactly 0, and the others are not renormalized."""
    q, k = torch.zeros(1, 1, 50, 4), torch.zeros(1, 1, 50, 4)
    got = attention.clip(q, k, torch.ones(1, 1, 50, 4))[0, 0, :, 0]
    weights = [min(max(1.06 / (t + 1) - 0.03, 0.0), 1.0) for t in range(50)]
    torch.testing.assert_close(got, torch.tensor([(t + 1) * weight for t, weight in enumerate(weights)]))
    assert float(got[36]) == 0.0


def exact_largest_logits(model: GPT, tokens_BT: Tensor) -> Tensor:
    """Returns ``max(q . k) / sqrt(K)`` of each head, ``(L, H)``, with loops."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [block.attention.qk.register_forward_hook(lambda m, i, y: seen.append(y)) for block in model.blocks]
    with torch.no_grad():
        model(tokens_BT)
    for hook in hooks:
        hook.remove()
    B, S, H, K = seen[0][0].shape
    return torch.tensor(
        [
            [max(float(q[b, t, h] @ k[b, s, h]) / K**0.5 for b in range(B) for t in range(S) for s in range(t + 1))
             for h in range(H)]
            for q, k in seen
        ]
    )  # fmt: skip


def spread_queries(engine: Engine) -> None:
    """Gives two heads of block 0 attention logits far above those of the others."""
    weight = engine.objective.model.blocks[0].attention.qkv.weight.data
    weight.view(3, 4, 16, 64)[:2, 1:3] *= 8.0


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_qk_clip_scales_the_heads_above_tau_after_a_step(tokens, micro_batch, chunks, monkeypatch):
    """The result is compared with the same step without a clip. At a learning rate of 0, the largest logit must then be
    tau."""
    batch_BU = tokens.train.read(range(4), tiny.T)
    inputs_BT = torch.from_numpy(batch_BU.astype(np.int64))[:, :-1]
    for lr in (1e-2, 0.0):
        clipped, free = (Engine(of(name, cell()), WORLD, compile=False) for name in ("qk-clip", "none"))
        for engine in (clipped, free):
            spread_queries(engine)
        largest_LH = exact_largest_logits(free.objective.model, inputs_BT)
        tau = float(largest_LH.flatten().sort().values[-3])
        monkeypatch.setattr(qk_clip, "QK_CLIP_TAU", tau)
        for engine in (clipped, free):
            assert engine.step(batch_BU, step=0, lr=lr, micro_batch=micro_batch).finite
        factor_LH = (tau / largest_LH).clamp(max=1.0)
        assert int((factor_LH < 0.999).sum()) == 2
        for factor_H, with_clip, without in zip(
            factor_LH, clipped.objective.model.blocks, free.objective.model.blocks, strict=True
        ):
            want = without.attention.qkv.weight.detach().view(3, 4, 16, 64).clone()
            want[:2] *= factor_H.sqrt()[:, None, None]
            found = with_clip.attention.qkv.weight.detach().view(3, 4, 16, 64)
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-7)
        if lr == 0.0:
            after_LH = exact_largest_logits(clipped.objective.model, inputs_BT)
            torch.testing.assert_close(after_LH[0], largest_LH[0].clamp(max=tau), rtol=1e-4, atol=1e-6)


def test_qk_clip_only_uses_logits_of_its_step_and_ignores_a_skipped_step(tokens, monkeypatch):
    monkeypatch.setattr(qk_clip, "QK_CLIP_TAU", SMALL_TAU)
    engine = Engine(of("qk-clip", cell()), WORLD, compile=False)
    clip = engine.objective.model.qk_clips[0]
    batch_BU = tokens.train.read(range(4), tiny.T)
    engine.step(batch_BU, step=0, lr=0.0, micro_batch=4)
    assert float(clip.largest_H.max()) > SMALL_TAU
    assert engine.step(batch_BU, step=1, lr=0.0, micro_batch=4).finite
    assert float(clip.largest_H.max()) <= SMALL_TAU * 1.01, "the logits of the previous step must not count"
    before = clip.largest_H.clone()
    engine.loss(torch.from_numpy(batch_BU.astype(np.int64)), 4)
    assert torch.equal(clip.largest_H, before), "an evaluation is not a step"
    spread_queries(engine)
    weights = engine.optimizer.values.clone()
    assert engine.step(batch_BU, step=2, lr=0.0, micro_batch=4, stop=True).stop
    assert torch.equal(engine.optimizer.values, weights)


def test_qk_clip_leaves_logits_up_to_100(tokens):
    """In that case the run equals that of ``none``, bit for bit."""
    clipped, free = (Engine(of(name, cell()), WORLD, compile=False) for name in ("qk-clip", "none"))
    for i in range(3):
        for engine in (clipped, free):
            engine.step(tokens.train.read(range(4), tiny.T), step=i, lr=1e-2, micro_batch=4)
    assert torch.equal(clipped.optimizer.values, free.optimizer.values)

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.parity import matrices
from benchmarks.plain import PlainGPT
from search_spaces.scales import SCALES
from search_spaces.training_spec import ModelSpec
from trainers.model import GPT, QueryKey

V, T = 256, 16


def gpt(seed: int = 0, **spec: object) -> GPT:
    model = GPT(SCALES["tiny"], ModelSpec.model_validate(spec), V, T)
    model.reset_parameters(seed)
    return model


@pytest.mark.parametrize("scale", ["tiny", "16M"])
def test_a_plain_implementation_has_the_same_logits_and_gradients(scale):
    model = GPT(SCALES[scale], ModelSpec(), V, T)
    model.reset_parameters(0)
    plain = PlainGPT(SCALES[scale], V, T)
    plain.take(model.state_dict())
    tokens_BT = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))
    ours_BTV, theirs_BTV = model(tokens_BT) @ model.E_VD.T, plain(tokens_BT)
    torch.testing.assert_close(ours_BTV, theirs_BTV, rtol=1e-4, atol=1e-4)
    for logits_BTV in (ours_BTV, theirs_BTV):
        logits_BTV.logsumexp(dim=-1).sum().backward()
    for ours, theirs in ((model.embedding, plain.embedding), (model.blocks[0].norm1, plain.blocks[0].norm1)):
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_parameter_count_matches_the_scale(scale, tied):
    with torch.device("meta"):
        model = GPT(scale, ModelSpec(tied=tied), 50_304, T)
    assert sum(p.numel() for p in model.parameters()) == scale.parameters(50_304, tied=tied)


def queries_and_keys(H: int, K: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Rotates the same ``(1, T, H, K)`` at every position as queries and as keys."""
    x = torch.randn(1, 1, H, K, generator=torch.Generator().manual_seed(0)).expand(1, T, H, K)
    return x, *QueryKey(K, T)(x, x)


def test_rotary_embedding_rotates_the_first_half_of_a_head_and_keeps_the_length_of_each_pair():
    K = 16
    x, q, k = queries_and_keys(H=2)
    assert torch.equal(q, k)
    torch.testing.assert_close(q[:, 0], torch.nn.functional.layer_norm(x[:, 0], (K,)))
    assert torch.equal(q[..., K // 2 :], q[:, :1, ..., K // 2 :].expand(1, T, 2, K // 2))
    assert (q[:, 1:, ..., : K // 2] != q[:, :1, ..., : K // 2]).all()
    lengths = q.unflatten(-1, (-1, 2)).norm(dim=-1)
    torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths))


def test_attention_logits_only_depend_on_the_distance():
    _, q, k = queries_and_keys(H=1)
    logits_TT = q[0, :, 0] @ k[0, :, 0].T
    for distance in (0, 1, 7):
        diagonal = logits_TT.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_queries_and_keys_have_the_norm_of_their_scale():
    model = gpt()
    seen = []
    model.blocks[0].attention.qk.register_forward_hook(lambda module, inputs, output: seen.extend(output))
    model(torch.arange(T)[None])
    for x_BTHK in seen:
        torch.testing.assert_close(x_BTHK.square().mean(dim=-1), torch.ones(1, T, 4), rtol=1e-2, atol=0)


def test_initial_values_of_plain_normal():
    model = GPT(SCALES["16M"], ModelSpec(init="normal"), 4096, T)
    model.reset_parameters(0)
    others = {"attention.proj": 0.02 / math.sqrt(12), "embedding": 224**-0.5}
    for name, matrix in matrices(model):
        assert float(matrix.std()) == pytest.approx(others.get(name, 0.02), rel=0.02), name


def test_reset_gives_the_same_values_again_in_the_same_memory():
    model = gpt(seed=3)
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    model.reset_parameters(3)
    for name, p in model.named_parameters():
        assert p.data_ptr() == before[name][0]
        assert torch.equal(p, before[name][1]), name
    model.reset_parameters(4)
    assert not torch.equal(model.E_VD, before["lm_head.weight"][1])


def test_tied_model_has_one_embedding():
    model = gpt(tied=True)
    assert model.E_VD is model.input_embedding_VD
    assert not any("lm_head" in name for name, _ in model.named_parameters())


def test_dropout_only_if_requested():
    assert not any(isinstance(module, nn.Dropout) for module in gpt().modules())
    model = gpt(dropout=0.5)
    tokens_BT = torch.arange(T)[None]
    assert not torch.equal(model(tokens_BT), model(tokens_BT))
    model.eval()
    assert torch.equal(model(tokens_BT), model(tokens_BT))

"""Methods and losses against their definitions, in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from search_spaces.methods import METHODS
from trainers import head, matmul, methods
from trainers.head import logits, losses

B, T, V, D = 2, 5, 11, 7
GAMMA = 0.3
GAMMA64 = torch.tensor(GAMMA, dtype=torch.float64)
FUNCTIONS = {"loss": methods.PENALTIES, "logits": methods.LOGITS_MAPS, "weights": methods.WEIGHTS_MAPS}
PENALTIES = [name for name, method in METHODS.items() if method.acts_on == "loss"]


Drawing = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(dtype: torch.dtype = torch.float64, seed: int = 0, sizes: tuple[int, ...] = (B, T, D, V)) -> Drawing:
    """Returns h_BTD, E_VD, targets_BT."""
    B, T, D, V = sizes
    generator = torch.Generator().manual_seed(seed)
    h_BTD = torch.randn(B, T, D, generator=generator, dtype=dtype).requires_grad_()
    E_VD = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    return h_BTD, E_VD, torch.randint(V, (B, T), generator=generator)


# The definition of each method: (gamma, logits, mean row of E) -> (mapped logits, penalty). They must not call the
# functions that they check.
FORMULAS: dict[str, Callable[[float, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | float]]] = {
    "baseline": lambda gamma, logits, mu: (logits, 0.0),
    "z-loss": lambda gamma, logits, mu: (logits, gamma * (logits.exp().sum(dim=-1).log() ** 2).mean()),
    "mu-loss": lambda gamma, logits, mu: (logits, gamma * (mu @ mu)),
    "mu-centering": lambda gamma, logits, mu: (logits, 0.0),  # it only changes E after each optimizer step
    "soft-cap": lambda gamma, logits, mu: (gamma * torch.tanh(logits / gamma), 0.0),
    "max-z": lambda gamma, logits, mu: (logits, gamma * (logits.max(dim=-1).values ** 2).mean()),
}


def formula(
    method: str,
    gamma: float,
    h_BTD: torch.Tensor,
    E_VD: torch.Tensor,
    targets_BT: torch.Tensor,
    precision: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns the objective over all logits at once. Autograd rounds the gradient of a rounding."""
    logits_BTV = (h_BTD @ E_VD.T).to(precision or E_VD.dtype).to(E_VD.dtype)
    mapped_BTV, penalty = FORMULAS[method](gamma, logits_BTV, E_VD.sum(dim=0) / len(E_VD))
    return F.cross_entropy(mapped_BTV.flatten(0, 1), targets_BT.flatten()) + penalty


def test_every_method_has_an_independent_formula() -> None:
    assert set(FORMULAS) == set(METHODS), "add the method's definition to FORMULAS, without calling trainers.methods"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_has_a_function_and_acts_in_one_place(method):
    found = {place for place, functions in FUNCTIONS.items() if method.name in functions}
    assert found == {method.acts_on} - {"nothing"}
    for functions in FUNCTIONS.values():
        if method.name in functions:
            assert functions[method.name].__name__ == method.name.replace("-", "_")


def test_every_function_is_in_the_registry():
    own = {name for name, value in vars(methods).items() if getattr(value, "__module__", "") == methods.__name__}
    assert own - {"_functions"} == {
        name.replace("-", "_") for name, method in METHODS.items() if method.acts_on != "nothing"
    }


@pytest.fixture(params=[1, 3, 5, 10, 64], ids="chunks of {}".format)
def chunks(request, monkeypatch) -> int:
    """Returns the tokens per chunk. There are ten tokens in total, which only some of the sizes divide."""
    monkeypatch.setattr(head, "CHUNK_BYTES", request.param * V * 4)
    return request.param


@pytest.mark.parametrize(
    ("method", "inputs"),
    [
        ("baseline", (False, False, False)),
        ("z-loss", (True, False, False)),
        ("max-z", (False, True, False)),
        ("mu-loss", (False, False, True)),
        ("soft-cap", (False, False, False)),
    ],
)
def test_the_inputs_of_a_penalty_are_found(method, inputs):
    assert head.penalty_inputs(method) == inputs


def test_a_chunk_leaves_a_small_device_its_memory():
    V, gigabyte = 50_304, 2**30
    assert head.chunk_tokens(V, 141 * gigabyte) == head.chunk_tokens(V, 35 * gigabyte) == head.MAX_CHUNK_TOKENS
    for room in (24 * gigabyte, 6 * gigabyte):
        assert 0.9 * head.CHUNK_SHARE * room < 2 * head.chunk_tokens(V, room) * V * 2 <= head.CHUNK_SHARE * room
    assert head.chunk_tokens(V, 1.0) == 1


def gradients(objective: torch.Tensor, drawing: Drawing) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(objective, drawing[:2])


@pytest.mark.parametrize("rows", [0.5, 1, 2, 3, 100])
def test_a_mapped_chunk_in_blocks_of_any_size(rows, chunks, monkeypatch):
    monkeypatch.setattr(head, "BLOCK_BYTES", int(rows * V * 4))
    test_objective_and_gradients_are_the_formulas_in_chunks_of_any_size("soft-cap", chunks)


def test_a_map_may_leave_the_logits_as_they_are(chunks, monkeypatch):
    def soft_cap(c, logits_NV):
        tanh_NV = (logits_NV / c).tanh()
        return c * tanh_NV, lambda grad_NV: grad_NV * (1 - tanh_NV**2)

    monkeypatch.setattr(head, "BLOCK_BYTES", 2 * V * 4)
    monkeypatch.setitem(methods.LOGITS_MAPS, "soft-cap", soft_cap)
    test_objective_and_gradients_are_the_formulas_in_chunks_of_any_size("soft-cap", chunks)


@pytest.mark.parametrize("method", METHODS)
def test_objective_and_gradients_are_the_formulas_in_chunks_of_any_size(method, chunks):
    mine, theirs = drawn(), drawn()
    got = losses(*mine, method, GAMMA64, "float32").objective
    want = formula(method, GAMMA, *theirs)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(got, mine), gradients(want, theirs), rtol=1e-10, atol=1e-10)


def test_a_penalty_may_depend_on_all_it_is_given(chunks, monkeypatch):
    def penalty(gamma, log_z, max_logit, mu):
        return gamma * (log_z * max_logit).exp() * mu.sum()

    monkeypatch.setitem(methods.PENALTIES, "z-loss", penalty)
    mine, theirs = drawn(), drawn()
    logits_NV = theirs[0].flatten(0, 1) @ theirs[1].T
    penalty_N = penalty(GAMMA, logits_NV.logsumexp(dim=-1), logits_NV.max(dim=-1).values, theirs[1].mean(dim=0))
    want = F.cross_entropy(logits_NV, theirs[2].flatten()) + penalty_N.mean()
    got = losses(*mine, "z-loss", GAMMA64, "float32").objective
    torch.testing.assert_close(gradients(got, mine), gradients(want, theirs), rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(*(st.integers(1, 9) for _ in range(4)), st.integers(2, 40)),
    method=st.sampled_from(list(METHODS)),
    gamma=st.floats(0.1, 10),
    seed=st.integers(0, 2**31),
)
def test_the_gradient_is_the_slope_of_the_objective_for_any_shape(sizes, method, gamma, seed):
    chunk, *btd, V = sizes
    drawing, way = drawn(seed=seed, sizes=(*btd, V)), drawn(seed=seed + 1, sizes=(*btd, V))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "CHUNK_BYTES", chunk * V * 4)

        def objective(step: float) -> torch.Tensor:
            h_BTD, E_VD = (x + step * direction for x, direction in zip(drawing[:2], way[:2], strict=True))
            return losses(h_BTD, E_VD, drawing[2], method, torch.tensor(gamma, dtype=torch.float64), "float32")[0]

        slope = sum((g * w).sum() for g, w in zip(gradients(objective(0.0), drawing), way[:2], strict=True))
        measured = (objective(1e-6) - objective(-1e-6)) / 2e-6
    torch.testing.assert_close(slope, measured, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(B, T, D, V), (B, T, V, D)], ids=["V > D", "V < D"])
@pytest.mark.parametrize("onednn", [False, True])
def test_float32_matches_the_formula_with_either_matmul_library(onednn, sizes, chunks, monkeypatch):
    monkeypatch.setattr(matmul, "ONEDNN_IS_FASTER", onednn)
    drawing = drawn(torch.float32, sizes=sizes)
    wide = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in drawing]
    found = losses(*drawing, "z-loss", torch.tensor(GAMMA), "float32").objective
    expected = formula("z-loss", GAMMA, *wide)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients(found, drawing), gradients(expected, wide), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_reported_loss_is_the_plain_cross_entropy(method):
    drawing = drawn(torch.float32)
    reported = losses(*drawing, method, torch.tensor(GAMMA), "float32").cross_entropy
    torch.testing.assert_close(reported, formula(method if method == "soft-cap" else "baseline", GAMMA, *drawing))
    assert not reported.requires_grad


@pytest.mark.parametrize("logits_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", PENALTIES)
def test_a_gamma_of_zero_is_the_baseline_bit_for_bit(method, logits_dtype, chunks):
    mine, theirs = drawn(torch.float32), drawn(torch.float32)
    zero = losses(*mine, method, torch.tensor(0.0), logits_dtype).objective
    base = losses(*theirs, "baseline", torch.tensor(0.0), logits_dtype).objective
    assert torch.equal(zero, base)
    for a, b in zip(gradients(zero, mine), gradients(base, theirs), strict=True):
        assert torch.equal(a, b)


def test_the_incoming_gradient_scales_both_gradients():
    once, thrice = drawn(), drawn()
    want = [3 * g for g in gradients(losses(*once, "z-loss", GAMMA64, "float32").objective, once)]
    got = gradients(3 * losses(*thrice, "z-loss", GAMMA64, "float32").objective, thrice)
    torch.testing.assert_close(list(got), want, rtol=1e-12, atol=1e-12)


def test_a_second_backward_pass_raises_and_does_not_return_a_wrong_gradient():
    objective = losses(*drawn(), "baseline", GAMMA64, "float32").objective
    objective.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        objective.backward()


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_cross_entropy_holds_where_exponentials_overflow(shift):
    logits_VN = torch.tensor([[0.0, 3.0], [80.0, 3.0], [200.0, 3.0]]) + shift
    h_BTD, targets_BT = torch.eye(2)[None], torch.tensor([[0, 1]])
    found = losses(h_BTD, logits_VN, targets_BT, "baseline", torch.tensor(0.0), "float32").cross_entropy
    torch.testing.assert_close(found, torch.tensor((200.0 + 1.0986123) / 2), rtol=0, atol=2e-3)


class OpRecorder(TorchDispatchMode):
    """Observes every operation below autograd: how often each ran, and the size of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest = 0

    @property
    def products(self) -> int:
        return sum(self.calls[name] for name in ("mm", "addmm_", "_linear_pointwise"))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls[function.overloadpacket.__name__] += 1
        self.largest = max([self.largest, *(x.numel() for x in pytree.tree_leaves(out) if torch.is_tensor(x))])
        return out


@pytest.mark.parametrize("logits_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_no_tensor_is_larger_than_the_logits_of_a_chunk(method, logits_dtype, chunks):
    with OpRecorder() as recorder:
        losses(*drawn(torch.float32), method, torch.tensor(GAMMA), logits_dtype).objective.backward()
    # E and its gradient, which exist in any case, have V * D elements.
    assert recorder.largest <= max(min(chunks, B * T), D) * V


def test_without_grad_there_are_the_logits_and_no_gradient(chunks):
    products = -(-B * T // chunks)
    with OpRecorder() as recorder:
        losses(*drawn(torch.float32), "z-loss", torch.tensor(GAMMA), "float32")
    assert recorder.products == 3 * products
    with torch.no_grad(), OpRecorder() as recorder:
        found = losses(*drawn(torch.float32), "z-loss", torch.tensor(GAMMA), "float32")
    assert recorder.products == products
    assert not found.objective.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_logits_are_rounded_forward_and_backward(method, chunks):
    """In float64, in which no sum is so close to a rounding boundary that its order matters."""
    mine, theirs = drawn(), drawn()
    got = losses(*mine, method, GAMMA64, "bfloat16").objective
    want = formula(method, GAMMA, *theirs, precision=torch.bfloat16)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    found, exact = gradients(got, mine), gradients(formula(method, GAMMA, *theirs), theirs)
    torch.testing.assert_close(found, gradients(want, theirs), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found[0], exact[0], rtol=1e-5), "the logits were not rounded"


def test_under_autocast_bfloat16_logits_come_from_bfloat16_products(chunks):
    mine, theirs = drawn(torch.float32), drawn(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = losses(*mine, "baseline", torch.tensor(0.0), "bfloat16").objective
        logits_BTV = F.linear(theirs[0], theirs[1])
    want = F.cross_entropy(logits_BTV.float().flatten(0, 1), theirs[2].flatten())
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    found, expected = gradients(got, mine), gradients(want, theirs)
    assert {g.dtype for g in found} == {torch.float32}
    torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-9)


@pytest.mark.parametrize("autocast", [False, True])
def test_float32_logits_and_gradients_stay_so_under_autocast(autocast):
    mine, theirs = drawn(torch.float32), drawn(torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = losses(*mine, "baseline", torch.tensor(0.0), "float32").objective
        seen = logits(*mine[:2], "baseline", torch.tensor(0.0), "float32")
    want = formula("baseline", 0.0, *theirs)
    torch.testing.assert_close(gradients(got, mine), gradients(want, theirs), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen, mine[0] @ mine[1].T, rtol=1e-6, atol=1e-6)


def test_the_logits_of_diagnostics_are_rounded_and_capped():
    h_BTD, E_VD, _ = drawn(torch.float32)
    exact_BTV = (h_BTD @ E_VD.T).detach()
    rounded_BTV = logits(h_BTD, E_VD, "baseline", torch.tensor(0.0), "bfloat16")
    assert torch.equal(rounded_BTV, exact_BTV.bfloat16().float())
    assert not torch.equal(rounded_BTV, exact_BTV)
    capped_BTV = logits(h_BTD, E_VD, "soft-cap", torch.tensor(2.0), "float32")
    torch.testing.assert_close(capped_BTV, 2 * torch.tanh(exact_BTV / 2))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_mu_is_gone_after_mu_centering(size):
    E_VD = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0)) + size
    before = E_VD.clone()
    methods.mu_centering(E_VD)
    assert float(E_VD.double().mean(dim=0).norm()) < 1e-6
    torch.testing.assert_close(
        E_VD, (before.double() - before.double().mean(dim=0)).float(), rtol=1e-4, atol=1e-6 * max(1.0, size)
    )


shapes = st.tuples(*(st.integers(1, 6) for _ in range(3)), st.integers(2, 30))
gammas = st.floats(1e-3, 10)
seeds = st.integers(0, 2**31)


@settings(deadline=None, max_examples=60)
@given(sizes=shapes, method=st.sampled_from(PENALTIES), gamma=gammas, seed=seeds)
def test_a_penalty_is_never_negative_and_grows_with_gamma_alone(sizes, method, gamma, seed):
    drawing = drawn(seed=seed, sizes=sizes)
    once, twice = (losses(*drawing, method, torch.tensor(k * gamma, dtype=torch.float64), "float32") for k in (1, 2))
    penalty = once.objective - once.cross_entropy
    assert once.cross_entropy == twice.cross_entropy > 0
    assert penalty >= 0
    torch.testing.assert_close(twice.objective - twice.cross_entropy, 2 * penalty, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(sizes=shapes, seed=seeds)
def test_mu_centering_changes_no_cross_entropy_and_once_is_enough(sizes, seed):
    """It shifts all logits of a token equally, which does not change the softmax."""
    h_BTD, E_VD, targets_BT = drawn(seed=seed, sizes=sizes)
    before = losses(h_BTD, E_VD, targets_BT, "baseline", GAMMA64, "float32").cross_entropy
    centered_VD = E_VD.detach().clone()
    methods.mu_centering(centered_VD)
    after = losses(h_BTD, centered_VD, targets_BT, "mu-centering", GAMMA64, "float32").cross_entropy
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    again_VD = centered_VD.clone()
    methods.mu_centering(again_VD)
    torch.testing.assert_close(again_VD, centered_VD, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slow_tanh", [False, True])
def test_soft_cap_with_either_tanh(slow_tanh, monkeypatch):
    monkeypatch.setattr(methods, "SLOW_TANH", slow_tanh)
    logits_NV = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)) * 20
    leaf_NV = logits_NV.double().requires_grad_()
    exact_NV = 5 * torch.tanh(leaf_NV / 5)
    exact_NV.sum().backward()
    capped_NV, vjp = methods.soft_cap(torch.tensor(5.0), logits_NV)
    torch.testing.assert_close(capped_NV.double(), exact_NV.detach(), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(vjp(torch.ones(7, 40)).double(), leaf_NV.grad, rtol=1e-6, atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(sizes=shapes, c=st.floats(0.1, 50), size=st.floats(0.1, 100), seed=seeds)
def test_soft_cap_keeps_the_order_of_logits_and_none_above_c(sizes, c, size, seed):
    h_BTD, E_VD, _ = drawn(seed=seed, sizes=sizes)
    h_BTD = h_BTD.detach() * size
    plain = logits(h_BTD, E_VD, "baseline", GAMMA64, "float32").flatten()
    capped = logits(h_BTD, E_VD, "soft-cap", torch.tensor(c, dtype=torch.float64), "float32").flatten()
    assert capped.abs().max() <= c
    assert (capped[plain.argsort()].diff() >= -1e-12 * c).all()

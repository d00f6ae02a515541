"""Methods and losses against the formulas of METHODS, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from search_spaces.methods import METHODS
from trainers import methods
from trainers.head import CrossEntropy, logits, losses

B, T, V, D = 2, 5, 11, 7
GAMMA = 0.3
FUNCTIONS = {"loss": methods.PENALTIES, "logits": methods.LOGITS_MAPS, "weights": methods.WEIGHTS_MAPS}
PENALTIES = [name for name, method in METHODS.items() if method.acts_on == "loss"]


def drawn(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """h_BTD, E_VD, targets_BT."""
    generator = torch.Generator().manual_seed(0)
    h_BTD = torch.randn(B, T, D, generator=generator, dtype=dtype).requires_grad_()
    E_VD = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    return h_BTD, E_VD, torch.randint(V, (B, T), generator=generator)


def formula(method: str, gamma: float, h_BTD: torch.Tensor, E_VD: torch.Tensor, targets_BT: torch.Tensor):
    """The objective, written as in METHODS."""
    logits_BTV = h_BTD @ E_VD.T
    if method == "soft-cap":
        logits_BTV = gamma * torch.tanh(logits_BTV / gamma)
    Z_BT = logits_BTV.exp().sum(dim=-1)
    mu_D = E_VD.sum(dim=0) / V
    penalty = {
        "z-loss": lambda: (Z_BT.log() ** 2).mean(),
        "mu-loss": lambda: mu_D @ mu_D,
        "max-z": lambda: (logits_BTV.max(dim=-1).values ** 2).mean(),
    }
    cross_entropy = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    return cross_entropy + gamma * penalty[method]() if method in penalty else cross_entropy


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_of_the_registry_has_its_function_and_enters_in_one_place(method):
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


@pytest.mark.parametrize("method", METHODS)
def test_objective_and_gradient_are_the_formulas(method, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)  # keeps float64, in which 1e-10 means something
    mine, theirs = drawn(), drawn()
    got = losses(*mine, method, torch.tensor(GAMMA, dtype=torch.float64), "float32")
    want = formula(method, GAMMA, *theirs)
    torch.testing.assert_close(got.objective, want, rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(got.objective, mine[:2]), torch.autograd.grad(want, theirs[:2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_the_reported_loss_is_the_plain_cross_entropy(method):
    drawing = drawn(torch.float32)
    reported = losses(*drawing, method, torch.tensor(GAMMA), "float32").cross_entropy
    torch.testing.assert_close(reported, formula(method if method == "soft-cap" else "baseline", GAMMA, *drawing))
    assert not reported.requires_grad


@pytest.mark.parametrize("logits_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", PENALTIES)
def test_strength_zero_is_the_baseline_bit_for_bit(method, logits_dtype):
    mine, theirs = drawn(torch.float32), drawn(torch.float32)
    zero = losses(*mine, method, torch.tensor(0.0), logits_dtype)
    base = losses(*theirs, "baseline", torch.tensor(0.0), logits_dtype)
    assert torch.equal(zero.objective, base.objective)
    for a, b in zip(
        torch.autograd.grad(zero.objective, mine[:2]), torch.autograd.grad(base.objective, theirs[:2]), strict=True
    ):
        assert torch.equal(a, b)


def test_cross_entropy_is_autograds_for_any_incoming_gradient():
    generator = torch.Generator().manual_seed(1)
    x_NV, g_N2 = (torch.randn(6, n, dtype=torch.float64, generator=generator) for n in (V, 2))
    targets_N = torch.arange(6)
    mine, theirs = x_NV.clone().requires_grad_(), x_NV.clone().requires_grad_()
    torch.autograd.backward(CrossEntropy.apply(mine, targets_N), g_N2.unbind(1))
    torch.autograd.backward(
        (F.cross_entropy(theirs, targets_N, reduction="none"), theirs.logsumexp(dim=-1)), g_N2.unbind(1)
    )
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_a_second_backward_pass_raises_and_does_not_return_a_wrong_gradient():
    x_NV = torch.zeros(2, V, requires_grad=True)
    ce_N, _ = CrossEntropy.apply(x_NV, torch.arange(2))
    ce_N.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ce_N.sum().backward()


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_cross_entropy_holds_where_exponentials_overflow(shift):
    x_NV = torch.tensor([[0.0, 80.0, 200.0], [3.0, 3.0, 3.0]]) + shift
    ce_N, log_z_N = CrossEntropy.apply(x_NV, torch.tensor([0, 1]))
    torch.testing.assert_close(ce_N, torch.tensor([200.0, 1.0986123]), rtol=0, atol=2e-3)
    torch.testing.assert_close(log_z_N, x_NV.logsumexp(dim=-1))


def test_bfloat16_logits_are_rounded_forward_and_backward():
    h_BTD, E_VD, _ = drawn(torch.float32)
    exact, rounded = logits(h_BTD, E_VD, "float32"), logits(h_BTD, E_VD, "bfloat16")
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)
    gradient = torch.rand(B, T, V, generator=torch.Generator().manual_seed(2))
    rounded.backward(gradient)
    assert torch.equal(h_BTD.grad, gradient.bfloat16().float() @ E_VD.detach())


def test_float32_logits_stay_so_under_autocast():
    h_BTD, E_VD, _ = drawn(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        kept, natural = logits(h_BTD, E_VD, "float32"), logits(h_BTD, E_VD, "bfloat16")
    assert torch.equal(kept, h_BTD @ E_VD.T)
    assert torch.equal(natural, natural.bfloat16().float())


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_mu_is_gone_after_mu_centering(size):
    E_VD = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0)) + size
    before = E_VD.clone()
    methods.mu_centering(E_VD)
    assert float(E_VD.double().mean(dim=0).norm()) < 1e-6
    torch.testing.assert_close(
        E_VD, (before.double() - before.double().mean(dim=0)).float(), rtol=1e-4, atol=1e-6 * max(1.0, size)
    )

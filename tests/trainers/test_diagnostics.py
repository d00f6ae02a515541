from __future__ import annotations

import math

import pytest
import torch

from search_spaces.cell import ModelSpec
from search_spaces.scales import SCALES
from trainers import diagnostics
from trainers.head import Objective
from trainers.model import GPT
from trainers.spikes import JUDGED_FROM, Spikes

V, T, L = 256, 16, 2
NONE = torch.zeros(())


def objective(tied: bool = False) -> Objective:
    model = GPT(SCALES["tiny"], ModelSpec(tied=tied), V, T)
    model.reset_parameters(0)
    return Objective(model, "float32", "float32").eval()


def batch() -> torch.Tensor:
    return torch.randint(V, (3, T + 1), generator=torch.Generator().manual_seed(0))


def test_keys_are_frozen():
    """They are column names in tables, MLflow and reports: a change here is a change there."""
    expected = (
        "train_loss val_loss lr grad_norm step_seconds tokens_per_second loss_spikes spike_score "
        "system/process_cpu_percent system/process_memory_megabytes system/gpu_memory_megabytes "
        "output_mu_norm output_ratio_norm output_row_norm_mean output_row_norm_min output_row_norm_max "
        "output_isotropy output_singular_min output_singular_max "
        "input_mu_norm input_ratio_norm input_row_norm_mean input_row_norm_min input_row_norm_max "
        "input_isotropy input_singular_min input_singular_max "
        "output_b_ratio logits_mean logits_std logits_absmax log_z log_z_squared mu_h_cosine "
        "qkv_rms/0 qkv_norm/0 proj_rms/0 proj_norm/0 fc1_rms/0 fc1_norm/0 fc2_rms/0 fc2_norm/0 "
        "attention_logit_max"
    )
    assert " ".join(diagnostics.keys(1)) == expected


@pytest.mark.parametrize("tied", [False, True])
def test_a_healthy_model_has_every_key(tied):
    measured = diagnostics.measure(objective(tied), batch(), "baseline", NONE)
    assert set(measured) == set(diagnostics.keys(L)) - set(diagnostics.TRAINING)
    assert all(math.isfinite(value) for value in measured.values())
    assert (measured["output_mu_norm"] == measured["input_mu_norm"]) == tied


def test_values_are_the_definitions():
    measuring = objective()
    model, tokens_BU = measuring.model, batch()
    seen = {}
    hook = model.blocks[1].mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.update(fc1=output))
    with torch.no_grad():
        h_BTD = model(tokens_BU[:, :-1])
    hook.remove()
    E_VD = model.E_VD.detach().double()
    logits_BTV = (h_BTD @ model.E_VD.T).detach()
    mu_D, row_norm_V = E_VD.mean(dim=0), E_VD.norm(dim=1)
    singular_D = torch.linalg.svdvals(E_VD)
    a_V = E_VD @ mu_D
    square = float(mu_D @ mu_D)
    expected = {
        "output_mu_norm": mu_D.norm(),
        "output_ratio_norm": mu_D.norm() / row_norm_V.mean(),
        "output_row_norm_mean": row_norm_V.mean(),
        "output_row_norm_min": row_norm_V.min(),
        "output_row_norm_max": row_norm_V.max(),
        "output_singular_min": singular_D.min(),
        "output_singular_max": singular_D.max(),
        "output_b_ratio": max(square - a_V.min(), a_V.max() - square) / max(-a_V.min(), a_V.max()),
        "logits_mean": logits_BTV.mean(),
        "logits_std": logits_BTV.std(dim=-1).mean(),
        "logits_absmax": logits_BTV.abs().max(),
        "log_z": logits_BTV.logsumexp(dim=-1).mean(),
        "log_z_squared": (logits_BTV.logsumexp(dim=-1) ** 2).mean(),
        "mu_h_cosine": ((h_BTD.double() @ mu_D) / (h_BTD.double().norm(dim=-1) * mu_D.norm())).mean(),
        "fc1_rms/1": (seen["fc1"] ** 2).mean().sqrt(),
        "fc1_norm/1": seen["fc1"].norm(dim=-1).mean(),
    }
    measured = diagnostics.measure(measuring, tokens_BU, "baseline", NONE)
    for name, value in expected.items():
        assert measured[name] == pytest.approx(float(value), rel=1e-4), name


def test_logits_in_parts_are_the_logits_at_once(monkeypatch):
    measuring, tokens_BU = objective(), batch()
    with torch.no_grad():
        measuring.model.E_VD.add_(20.0 * torch.randn(64, generator=torch.Generator().manual_seed(1)))  # they wander far
    at_once = diagnostics.measure(measuring, tokens_BU, "soft-cap", torch.tensor(3000.0))
    assert at_once["logits_absmax"] > 100 * at_once["logits_std"], "the mean is to dwarf the spread"
    monkeypatch.setattr(diagnostics, "TOKENS_AT_ONCE", 7)
    in_parts = diagnostics.measure(measuring, tokens_BU, "soft-cap", torch.tensor(3000.0))
    assert in_parts == pytest.approx(at_once, rel=1e-5)


def test_the_batch_is_a_few_sequences_and_never_none():
    assert diagnostics.batch_of(torch.zeros(32, 128 + 1)).shape == (4, 129)
    assert diagnostics.batch_of(torch.zeros(2, 128 + 1)).shape == (2, 129)
    assert diagnostics.batch_of(torch.zeros(32, 2048 + 1)).shape == (1, 2049)


def test_attention_logit_max_looks_at_no_future_key():
    q_BTHK, k_BTHK = torch.zeros(2, 1, 3, 1, 4)
    q_BTHK[0, 0, 0, 0] = 10.0  # the first query,
    k_BTHK[0, 2, 0, 0] = 10.0  # which may not see the last key
    assert float(diagnostics._attention_logit_max(q_BTHK, k_BTHK)) == 0.0
    q_BTHK[0, 2, 0, 0] = 3.0
    assert float(diagnostics._attention_logit_max(q_BTHK, k_BTHK)) == pytest.approx(10.0 * 3.0 / 4**0.5)


def test_isotropy_is_1_for_a_cross_and_small_for_a_common_direction():
    cross_VD = torch.cat((torch.eye(4), -torch.eye(4))).double()
    assert float(diagnostics.embedding(cross_VD)["isotropy"]) == pytest.approx(1.0)
    pushed = float(diagnostics.embedding(cross_VD + 2.0)["isotropy"])
    assert pushed == pytest.approx(math.exp(-2 * 4.0), rel=0.3)  # Z(mu / |mu|) is about exp(|mu|), |mu| = 4
    far = float(diagnostics.embedding((cross_VD + 500.0).float())["isotropy"])
    assert 0.0 <= far < 1e-300


def test_b_ratio_of_one_sided_rows_is_below_1():
    E_VD = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert float(diagnostics.b_ratio(E_VD)) == pytest.approx(2.0 / 6.0)  # mu = 2, a = 2 and 6, |mu|² = 4


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e38])
def test_a_diverged_model_leaves_keys_out_and_raises_nothing(bad):
    measuring = objective()
    with torch.no_grad():
        measuring.model.E_VD[3, 4] = bad
    measured = diagnostics.measure(measuring, batch(), "baseline", NONE)
    assert all(math.isfinite(value) for value in measured.values())
    assert "qkv_rms/0" in measured
    assert "output_row_norm_max" not in measured


def test_looking_leaves_no_hook_behind():
    measuring = objective()
    diagnostics.measure(measuring, batch(), "baseline", NONE)
    assert not any(module._forward_hooks for module in measuring.modules())


def test_spikes_are_losses_six_deviations_above_the_window():
    spikes = Spikes()
    for i in range(JUDGED_FROM):
        spikes.observe(100.0 if i == 1 else 3.0 + 0.1 * (i % 2))  # too early to be judged
    assert spikes.count == 0
    calm = Spikes([3.0, 3.2] * 30)
    calm.observe(3.1 + 5.9 * 0.1)
    assert calm.count == 0
    calm = Spikes([3.0, 3.2] * 30)
    calm.observe(3.1 + 6.1 * 0.1)
    calm.observe(2.0)
    assert calm.count == 1

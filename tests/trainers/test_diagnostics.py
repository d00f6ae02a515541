from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from search_spaces.scales import SCALES
from search_spaces.training_spec import ModelSpec, TrainingSpec
from trainers import diagnostics
from trainers.data import Shards, write_shard
from trainers.head import Objective
from trainers.model import GPT
from trainers.spikes import MIN_WINDOW_STEPS, Spikes

V, T, L = 256, 16, 2
NONE = torch.zeros(())


def objective(tied: bool = False) -> Objective:
    model = GPT(SCALES["tiny"], ModelSpec(tied=tied), V, T)
    model.reset_parameters(0)
    return Objective(model, "float32", "float32").eval()


def batch() -> torch.Tensor:
    return torch.randint(V, (3, T + 1), generator=torch.Generator().manual_seed(0))


def test_keys_are_frozen():
    """These are column names in tables, MLflow and reports, which a change would rename as well."""
    expected = (
        "train_loss val_loss lr grad_norm step_seconds tokens_per_second loss_spikes spike_score "
        "system/process_cpu_percent system/process_memory_megabytes system/gpu_memory_megabytes "
        "output_mu_norm output_ratio_norm output_row_norm_mean output_row_norm_min output_row_norm_max "
        "output_isotropy output_singular_min output_singular_max output_mu_h_cosine output_mu_h_dot "
        "input_mu_norm input_ratio_norm input_row_norm_mean input_row_norm_min input_row_norm_max "
        "input_isotropy input_singular_min input_singular_max input_mu_h_cosine input_mu_h_dot "
        "output_b_ratio logits_mean logits_std logits_absmean logits_absmax logits_mean_token_std logits_std_token_std "
        "logits_absmax_token_max log_z log_z_squared "
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


def test_values_match_their_definitions():
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
    input_mu_D, mean_h_D = model.input_embedding_VD.detach().double().mean(dim=0), h_BTD.double().mean(dim=(0, 1))
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
        # In the published analysis: logits_mean_absmean, logits_mean_absmax, logits_std_mean and logits_std_std.
        "logits_absmean": logits_BTV.abs().mean(dim=-1).mean(),
        "logits_absmax": logits_BTV.abs().amax(dim=-1).mean(),
        "logits_mean_token_std": logits_BTV.mean(dim=-1).std(),
        "logits_std_token_std": logits_BTV.std(dim=-1).std(),
        "logits_absmax_token_max": logits_BTV.abs().max(),
        "log_z": logits_BTV.logsumexp(dim=-1).mean(),
        "log_z_squared": (logits_BTV.logsumexp(dim=-1) ** 2).mean(),
        "output_mu_h_dot": mu_D @ mean_h_D,
        "output_mu_h_cosine": (mu_D @ mean_h_D) / (mu_D.norm() * mean_h_D.norm()),
        "input_mu_h_dot": input_mu_D @ mean_h_D,
        "input_mu_h_cosine": (input_mu_D @ mean_h_D) / (input_mu_D.norm() * mean_h_D.norm()),
        "fc1_rms/1": (seen["fc1"] ** 2).mean().sqrt(),
        "fc1_norm/1": seen["fc1"].norm(dim=-1).mean(),
        "attention_logit_max": attention_logit_max(model, tokens_BU[:, :-1]),
    }
    measured = diagnostics.measure(measuring, tokens_BU, "baseline", NONE)
    for name, value in expected.items():
        assert measured[name] == pytest.approx(float(value), rel=1e-4), name


def attention_logit_max(model, tokens_BT):
    """Returns the maximum over all blocks, with a mask over all pairs of positions."""
    seen = []
    hooks = [
        block.attention.qk.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for block in model.blocks
    ]
    with torch.no_grad():
        model(tokens_BT)
    for hook in hooks:
        hook.remove()
    past_TT = torch.ones(T, T, dtype=torch.bool).tril()
    return max(
        float((torch.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK) / q_BTHK.shape[-1] ** 0.5)[:, :, past_TT].max())
        for q_BTHK, k_BTHK in seen
    )


def test_the_dot_product_of_mu_and_the_mean_hidden_state_is_the_mean_logit():
    measured = diagnostics.measure(objective(), batch(), "baseline", NONE)
    assert measured["output_mu_h_dot"] == pytest.approx(measured["logits_mean"], rel=1e-4, abs=1e-7)


def test_forward_passes_add_up_to_one(monkeypatch):
    measuring = objective()
    tokens_NU = torch.randint(V, (7, T + 1), generator=torch.Generator().manual_seed(2))
    whole = diagnostics.measure(measuring, tokens_NU, "baseline", NONE)
    monkeypatch.setattr(diagnostics, "ROW_TOKENS", 2 * T)  # passes of 2, 2, 2 and 1 sequences
    assert diagnostics.measure(measuring, tokens_NU, "baseline", NONE) == pytest.approx(whole, rel=1e-5, abs=1e-7)


def test_logits_in_parts_match_the_logits_at_once(monkeypatch):
    measuring, tokens_BU = objective(), batch()
    with torch.no_grad():
        measuring.model.E_VD.add_(
            20.0 * torch.randn(64, generator=torch.Generator().manual_seed(1))
        )  # far from their initial values
    at_once = diagnostics.measure(measuring, tokens_BU, "soft-cap", torch.tensor(3000.0))
    assert at_once["logits_absmax_token_max"] > 100 * at_once["logits_std"], "the mean must dwarf the spread"
    monkeypatch.setattr(diagnostics, "LOGITS_TOKENS", 7)
    in_parts = diagnostics.measure(measuring, tokens_BU, "soft-cap", torch.tensor(3000.0))
    assert in_parts == pytest.approx(at_once, rel=1e-5)


def test_the_batch_of_a_row_is_a_few_sequences_and_never_none():
    def chosen(sequences, T, batch_size):
        spec = TrainingSpec(sequence_length=T, batch_size=batch_size)
        return tuple(diagnostics.row_batch(torch.zeros(sequences, T + 1), spec).shape)

    assert chosen(32, 128, 8) == (4, 129)
    assert chosen(2, 128, 8) == (2, 129)
    assert chosen(32, 64, 2) == (2, 65), "a row must not cost more tokens than a step"
    assert chosen(32, 2048, 8) == (1, 2049)


def test_the_last_row_measures_more_tokens(tmp_path):
    T = 16
    write_shard(tmp_path / "validation.bin", np.arange(5001) % 1000)
    validation = Shards((tmp_path / "validation.bin",))
    assert validation.windows(T) == 312

    def chosen(steps):
        spec = TrainingSpec(steps=steps, batch_size=10, sequence_length=T, warmup_steps=0)
        return diagnostics.final_batch(validation, spec)

    assert len(chosen(1)) == 512 // T, "a short run measures as many tokens as any other row"
    assert len(chosen(5_000)) == 5_000 * 10 // 400, "a longer run measures a share of its training tokens"
    assert len(chosen(100_000)) == 312, "no more than all tokens can be measured"
    first, second, *_, last = chosen(1)[:, 0].tolist()
    assert (first, last) == (0, 311 * T % 1000), "the sequences must span all windows"
    assert second >= 9 * T, "the sequences must be evenly spaced"


def test_attention_logit_max_ignores_future_keys():
    q_BTHK, k_BTHK = torch.zeros(2, 1, 3, 1, 4)
    q_BTHK[0, 0, 0, 0] = 10.0  # the first query
    k_BTHK[0, 2, 0, 0] = 10.0  # may not attend to the last key
    assert float(diagnostics._attention_logit_max(q_BTHK, k_BTHK)) == 0.0
    q_BTHK[0, 2, 0, 0] = 3.0
    assert float(diagnostics._attention_logit_max(q_BTHK, k_BTHK)) == pytest.approx(10.0 * 3.0 / 4**0.5)


def test_isotropy_is_1_for_a_cross_and_small_for_a_common_direction():
    cross_VD = torch.cat((torch.eye(4), -torch.eye(4))).double()
    assert float(diagnostics.embedding(cross_VD)["isotropy"]) == pytest.approx(1.0)
    pushed = float(diagnostics.embedding(cross_VD + 2.0)["isotropy"])
    # Z(mu / |mu|) is about 8 exp(|mu|) with |mu| = 4, and 8 in an orthogonal direction.
    assert pushed == pytest.approx(math.exp(-4.0), rel=0.3)
    assert float(diagnostics.embedding(-cross_VD - 2.0)["isotropy"]) == pytest.approx(pushed), (
        "the sign of a direction does not matter"
    )
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


def test_measuring_leaves_no_hook_behind():
    measuring = objective()
    diagnostics.measure(measuring, batch(), "baseline", NONE)
    assert not any(module._forward_hooks for module in measuring.modules())


def test_spikes_are_losses_six_deviations_above_the_window():
    spikes = Spikes()
    for i in range(MIN_WINDOW_STEPS):
        spikes.observe(100.0 if i == 1 else 3.0 + 0.1 * (i % 2))  # too few steps to be a spike
    assert spikes.count == 0
    calm = Spikes([3.0, 3.2] * 30)
    calm.observe(3.1 + 5.9 * 0.1)
    assert calm.count == 0
    calm = Spikes([3.0, 3.2] * 30)
    calm.observe(3.1 + 6.1 * 0.1)
    calm.observe(2.0)
    assert calm.count == 1

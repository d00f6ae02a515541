from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny import cell

from trainers.loop import Trainer
from trainers.world import World


@pytest.fixture
def fresh_compiler() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.long])])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler backend. Tests with inductor take a minute each."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))


def test_without_a_compiler_it_warns_once_and_trains_in_eager_mode(tokens, tmp_path, monkeypatch, fresh_compiler):
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    trainer, eager = Trainer(World.single(), tokens, compile=True), Trainer(World.single(), tokens)
    intervals = {"evaluate_every": 4, "checkpoint_every": 4}
    cells = (cell(), cell("z-loss", 1e-4), cell(sequence_length=16))
    no_compiler = inductor.patch({"cpp.cxx": ("/nonexistent/compiler",)})
    with no_compiler, pytest.warns(UserWarning, match="torch.compile failed, .* eager mode: InductorError") as caught:
        results = [trainer.run(c, tmp_path / c.id, **intervals) for c in cells]
    assert sum("torch.compile" in str(w.message) and w.category is UserWarning for w in caught) == 1
    for c, result in zip(cells, results, strict=True):
        assert result.val_loss == eager.run(c, tmp_path / f"eager-{c.id}", **intervals).val_loss


def test_compiled_it_trains_the_same_and_a_new_gamma_or_lr_does_not_compile_again(
    tokens, tmp_path, fresh_compiler, backend
):
    compiled, eager = Trainer(World.single(), tokens, compile=True), Trainer(World.single(), tokens)
    intervals = {"evaluate_every": 4, "checkpoint_every": 4}
    compilations = []
    for c in (cell("z-loss", 1e-4), cell("z-loss", 1e-1, lr=1e-2, seed=2)):
        got = compiled.run(c, tmp_path / c.id, **intervals)
        assert compiled._engine.compile, "it fell back to eager mode; the warning above says why"
        assert got.val_loss == pytest.approx(eager.run(c, tmp_path / f"eager-{c.id}", **intervals).val_loss, rel=1e-2)
        compilations.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compilations[0] == compilations[1] > 0


@pytest.mark.parametrize("attention_norm", ["soft-clip", "sigma-reparam"])
def test_compiled_variants_train_the_same_and_their_buffers_do_not_compile_again(
    tokens, tmp_path, fresh_compiler, backend, attention_norm
):
    """This covers a norm with an unfused softmax in two chunks, and a norm whose buffers change between steps."""
    this = cell(sequence_length=160, logits_dtype="float32").model_copy(update={"attention_norm": attention_norm})
    losses, intervals = {}, {"evaluate_every": 4, "checkpoint_every": 4}
    for compiles in (False, True):
        trainer = Trainer(World.single(), tokens, compile=compiles)
        result = trainer.run(this, tmp_path / str(compiles), **intervals)
        assert trainer._engine.compile == compiles
        losses[compiles] = result.train_loss
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1

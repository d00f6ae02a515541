"""Where a script writes its losses, found from its source alone: in which file, under which names, or in which printed
line."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from tests.search_spaces.scripts import draft, write

STREAMS: dict[str, tuple[str, dict[str, object] | None]] = {
    "json lines": (
        """
        def log(entry):
            with open(os.path.join(args.out_dir, "log.jsonl"), "a") as f:
                f.write(json.dumps(entry) + "\\n")
        log({"iter": it, "train/loss": a, "val/loss": b, "grad_norm": c, "time": t})
        """,
        {"file": "{folder}/log.jsonl", "step": "iter", "val_loss": "val/loss", "train_loss": "train/loss",
         "others": ["grad_norm"]},
    ),
    "a dictionary that grows": (
        """
        record = dict(step=step)
        record["eval_loss"] = loss
        (Path(args.out_dir) / "metrics.jsonl").open("a").write(json.dumps(record))
        """,
        {"file": "{folder}/run/metrics.jsonl", "step": "step", "val_loss": "eval_loss"},
    ),
    "csv": (
        """
        writer = csv.writer(open(f"{args.out_dir}/log.csv", "w"))
        writer.writerow(["step", "train_loss", "val_loss"])
        """,
        {"csv": "{folder}/log.csv", "step": "step", "val_loss": "val_loss", "train_loss": "train_loss"},
    ),
    "Lightning": (
        """
        class M(L.LightningModule):
            def step(self, batch, stage):
                self.log(f"{stage}_loss", 1.0)
            def training_step(self, batch, _): self.step(batch, "train")
            def validation_step(self, batch, _): self.step(batch, "val")
        logger = CSVLogger(args.out_dir, name="csv")
        """,
        {"csv": "{folder}/csv/version_*/metrics.csv", "step": "step", "val_loss": "val_loss",
         "train_loss": "train_loss"},
    ),
    "TensorBoard": (
        """
        writer = SummaryWriter(args.out_dir)
        writer.add_scalar("Loss/val", loss, step)
        """,
        {"tensorboard": "{folder}", "val_loss": "Loss/val"},
    ),
    "a file that all runs share": ('json.dump({"step": 1, "val_loss": 2}, open("log.jsonl", "a"))', None),
    "W&B alone": ('import wandb\nwandb.log({"iter": 1, "val/loss": 2})', None),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_streams(name: str, tmp_path: Path) -> None:
    text, metrics = STREAMS[name]
    parser = 'import argparse\np.add_argument("--lr", default=1e-3)\np.add_argument("--out_dir")\n'
    found = draft(write(tmp_path, parser + dedent(text)))
    assert found.trainer["metrics"] == metrics
    assert found.is_complete == (metrics is not None)
    assert ("l_init" in {missing.what for missing in found.missing}) == (name == "Lightning")


PRINTED = {
    'print(f"step {i}: train loss {a:.4f}, val loss {b:.4f}")': ("step 10: train loss 3.5000, val loss 3.2500", 10),
    'print(f"step:{i}/{n} val_loss:{v:.4f} t:{t:.0f}ms", console=True)': ("step:10/20 val_loss:3.2500 t:5ms", 10),
    """print('| end of epoch {:3d} | time: {:5.2f}s | valid loss {:5.2f} | '
    'valid ppl {:8.2f}'.format(epoch, t, v, p))""": (
        "| end of epoch  10 | time:  1.25s | valid loss  3.25 | ppl  9",
        10,
    ),
    'print("epoch", epoch, "val loss:", loss)': ("epoch 10 val loss: 3.25", 10),
    'logger.info("iter %d  eval loss %.3f", i, loss)': ("INFO: iter 10  eval loss 3.250", 10),
    'print("\\nTest set: Average loss: %.2f (%d%%)" % (loss, n))': ("Test set: Average loss: 3.25 (97%)", None),
    'print(f"step {i}: validation loss {loss}")': ("step 10: validation loss nan", 10),
}


@pytest.mark.parametrize("call", PRINTED)
def test_printed_lines_are_matched(call: str, tmp_path: Path) -> None:
    """The regular expression that is derived from a print call must match the output of that call."""
    line, step = PRINTED[call]
    metrics = draft(write(tmp_path, call)).trainer["metrics"]
    match = re.search(metrics["stdout"], line)
    assert match, f"{metrics['stdout']} does not match {line!r}"
    groups = match.groupdict()
    assert groups.get("step") == (str(step) if step else None)
    assert groups["val_loss"].startswith(("3.25", "nan"))


def test_the_validation_loss_is_preferred(tmp_path: Path) -> None:
    text = 'print(f"iter {i}: loss {a:.4f}")\nprint(f"step {i}: val loss {b:.4f}")\n'
    assert draft(write(tmp_path, text)).trainer["metrics"] == {
        "stdout": r"step (?P<step>\d+): val loss (?P<val_loss>[-+.\w]+)"
    }
    alone = draft(write(tmp_path, text.splitlines()[0]))
    assert alone.trainer["metrics"] == {"stdout": r"iter (?P<step>\d+): loss (?P<val_loss>[-+.\w]+)"}
    assert "validation loss" in {missing.what for missing in alone.missing}

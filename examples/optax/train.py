"""Train a character model of a fixed context on Python's standard library with JAX and optax.

python train.py --learning_rate=3e-3
"""

import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_float("learning_rate", 3e-3, "Peak learning rate.")
flags.DEFINE_float("weight_decay", 0.01, "Decoupled weight decay.")
flags.DEFINE_integer("seed", 0, "Seed of parameters and batches.")
flags.DEFINE_integer("num_steps", 200, "Number of steps.")
flags.DEFINE_integer("warmup_steps", 20, "Steps of linear warm-up.")
flags.DEFINE_integer("batch_size", 128, "Examples per step.")
flags.DEFINE_integer("context", 8, "Characters that the model sees.")
flags.DEFINE_integer("width", 128, "Hidden width.")
flags.DEFINE_integer("eval_every", 20, "Steps between evaluations.")


def init(key, vocab, context, width):
    keys = jax.random.split(key, 3)
    return {
        "embed": 0.1 * jax.random.normal(keys[0], (vocab, 16)),
        "hidden": jax.random.normal(keys[1], (16 * context, width)) / np.sqrt(16 * context),
        "bias": jnp.zeros(width),
        "out": jax.random.normal(keys[2], (width, vocab)) / np.sqrt(width),
    }


def loss_fn(params, inputs, targets):
    x = params["embed"][inputs].reshape(inputs.shape[0], -1)
    logits = jax.nn.gelu(x @ params["hidden"] + params["bias"]) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def main(_):
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in sources)[:500_000]
    chars = sorted(set(text))
    data = np.searchsorted(chars, list(text))
    windows = np.lib.stride_tricks.sliding_window_view(data, FLAGS.context + 1)
    train, val = windows[:450_000], windows[450_000::25]

    schedule = optax.warmup_cosine_decay_schedule(0.0, FLAGS.learning_rate, FLAGS.warmup_steps, FLAGS.num_steps)
    optimizer = optax.adamw(schedule, weight_decay=FLAGS.weight_decay)
    params = init(jax.random.key(FLAGS.seed), len(chars), FLAGS.context, FLAGS.width)
    state = optimizer.init(params)

    @jax.jit
    def train_step(params, state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch[:, :-1], batch[:, -1])
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    evaluate = jax.jit(loss_fn)
    rng = np.random.default_rng(FLAGS.seed)
    loss = float("nan")
    for step in range(FLAGS.num_steps + 1):
        if step % FLAGS.eval_every == 0:
            val_loss = float(evaluate(params, val[:, :-1], val[:, -1]))
            print(f"step {step:5d} | train loss {float(loss):.4f} | val loss {val_loss:.4f}")
        batch = train[rng.integers(len(train), size=FLAGS.batch_size)]
        params, state, loss = train_step(params, state, batch)


if __name__ == "__main__":
    app.run(main)

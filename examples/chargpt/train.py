"""Train a character-level GPT on the source code of Python's standard library.

python train.py --max_iters 500
torchrun --standalone --nproc-per-node 2 train.py          # data parallel
python train.py --resume                                   # after an interruption
"""

import argparse
import json
import math
import os
import sysconfig
import time
from pathlib import Path

import torch
import torch.distributed as dist
from model import GPT
from torch.nn.parallel import DistributedDataParallel as DDP

parser = argparse.ArgumentParser()
parser.add_argument("--out_dir", default="out", help="folder for log and checkpoint")
parser.add_argument("--seed", type=int, default=1337)
parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out_dir")
# model
parser.add_argument("--n_layer", type=int, default=2)
parser.add_argument("--n_head", type=int, default=2)
parser.add_argument("--n_embd", type=int, default=64)
parser.add_argument("--block_size", type=int, default=64)
# training
parser.add_argument("--batch_size", type=int, default=16, help="sequences per step, over all ranks")
parser.add_argument("--max_iters", type=int, default=200)
parser.add_argument("--learning_rate", type=float, default=3e-3, help="peak learning rate")
parser.add_argument("--warmup_iters", type=int, default=20)
parser.add_argument("--weight_decay", type=float, default=0.1)
parser.add_argument("--beta2", type=float, default=0.95)
parser.add_argument("--grad_clip", type=float, default=1.0)
parser.add_argument("--eval_interval", type=int, default=20)
parser.add_argument("--eval_iters", type=int, default=10)
args = parser.parse_args()

ddp = "RANK" in os.environ
rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
if ddp:
    dist.init_process_group("nccl" if device != "cpu" else "gloo")
torch.manual_seed(args.seed)
os.makedirs(args.out_dir, exist_ok=True)

# data: about 1 MB of text, the last tenth of it for validation
sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in sources)[:1_000_000]
chars = sorted(set(text))
codes = {char: code for code, char in enumerate(chars)}
data = torch.tensor([codes[char] for char in text])
train_data, val_data = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]


def get_batch(split, step):
    """The same tokens at a step, after a resume and on any number of ranks."""
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step if split is train_data else step)
    starts = torch.randint(len(split) - args.block_size - 1, (args.batch_size,), generator=generator)
    rows = torch.stack([split[start : start + args.block_size + 1] for start in starts[rank::world_size]])
    return rows[:, :-1].to(device), rows[:, 1:].to(device)


@torch.no_grad()
def estimate_loss():
    losses = torch.stack([model(*get_batch(val_data, step)) for step in range(args.eval_iters)]).mean()
    if ddp:
        dist.all_reduce(losses)
    return losses.item() / world_size


def get_lr(step):
    if step < args.warmup_iters:
        return args.learning_rate * (step + 1) / (args.warmup_iters + 1)
    progress = (step - args.warmup_iters) / max(1, args.max_iters - args.warmup_iters)
    return args.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


model = GPT(len(chars), args.block_size, args.n_layer, args.n_head, args.n_embd).to(device)
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, args.beta2), weight_decay=args.weight_decay)
checkpoint_path = os.path.join(args.out_dir, "ckpt.pt")
start = 0
if args.resume and os.path.exists(checkpoint_path):
    checkpoint = torch.load(checkpoint_path, map_location=device)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    start = checkpoint["iter"]
raw_model = model
if ddp:
    model = DDP(model)


def log(entry):
    if rank == 0:
        with open(os.path.join(args.out_dir, "log.jsonl"), "a") as file:
            file.write(json.dumps(entry) + "\n")


grad_norm, began = torch.tensor(0.0), time.time()
for it in range(start, args.max_iters + 1):
    if it % args.eval_interval == 0 or it == args.max_iters:
        val_loss = estimate_loss()
        log({"iter": it, "val/loss": val_loss, "lr": get_lr(it), "grad_norm": grad_norm.item()})
        if rank == 0:
            print(f"iter {it}: val loss {val_loss:.4f}, {time.time() - began:.1f} s", flush=True)
            state = {"model": raw_model.state_dict(), "optimizer": optimizer.state_dict(), "iter": it}
            torch.save(state, checkpoint_path + ".new")
            os.replace(checkpoint_path + ".new", checkpoint_path)
    if it == args.max_iters:
        break
    for group in optimizer.param_groups:
        group["lr"] = get_lr(it)
    loss = model(*get_batch(train_data, it))
    optimizer.zero_grad()
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
    optimizer.step()

if ddp:
    dist.destroy_process_group()

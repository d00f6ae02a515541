"""Train a small GPT-2 on the bytes of Python's standard library with the Hugging Face Trainer.

python train.py --output_dir out --learning_rate 1e-3
"""

import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class ModelArguments:
    n_layer: int = field(default=2, metadata={"help": "Number of blocks."})
    n_embd: int = field(default=64, metadata={"help": "Width."})
    block_size: int = field(default=64, metadata={"help": "Bytes per sequence."})


@dataclass
class Arguments(TrainingArguments):
    max_steps: int = field(default=150, metadata={"help": "Number of steps."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    warmup_steps: int = field(default=15, metadata={"help": "Steps of warm-up."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Sequences per step and device."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate."})
    eval_steps: int = field(default=25, metadata={"help": "Steps between evaluations."})
    logging_steps: int = field(default=25, metadata={"help": "Steps between logs."})
    save_strategy: str = field(default="no", metadata={"help": "When to save checkpoints."})


class Blocks(torch.utils.data.Dataset):
    """Consecutive blocks of bytes."""

    def __init__(self, data, block_size):
        self.data, self.block_size = data, block_size

    def __len__(self):
        return len(self.data) // self.block_size

    def __getitem__(self, index):
        block = self.data[index * self.block_size : (index + 1) * self.block_size]
        return {"input_ids": block, "labels": block}


def main():
    model_args, training_args = HfArgumentParser((ModelArguments, Arguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = b"".join(path.read_bytes() for path in sources)[:500_000]
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    config = GPT2Config(
        vocab_size=256,
        n_positions=model_args.block_size,
        n_layer=model_args.n_layer,
        n_head=2,
        n_embd=model_args.n_embd,
        bos_token_id=None,
        eos_token_id=None,
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=training_args,
        train_dataset=Blocks(data[:480_000], model_args.block_size),
        eval_dataset=Blocks(data[480_000:490_000], model_args.block_size),
    )
    trainer.train()


if __name__ == "__main__":
    main()

"""Tokens: where they come from, how they lie on disk, and which of them a step reads."""

from trainers.data.batches import Prefetcher, batch_windows
from trainers.data.preparation import Recipe, tokenize
from trainers.data.shards import Shards, write_shard
from trainers.data.sources import Tokens, prepare

__all__ = ["Prefetcher", "Recipe", "Shards", "Tokens", "batch_windows", "prepare", "tokenize", "write_shard"]

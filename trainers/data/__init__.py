"""Tokens: where they come from, how they are stored, and which of them a step reads."""

from trainers.data.batches import Prefetcher, batch_windows
from trainers.data.preparation import Recipe, tokenize
from trainers.data.shards import Shards, write_shard
from trainers.data.sources import TokenFiles, Tokens, prepare
from trainers.data.verification import MANIFEST

__all__ = [
    "MANIFEST",
    "Prefetcher",
    "Recipe",
    "Shards",
    "TokenFiles",
    "Tokens",
    "batch_windows",
    "prepare",
    "tokenize",
    "write_shard",
]

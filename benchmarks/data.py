"""Throughput of writing token files, compared with ``tiktoken`` alone, and of reading batches from them.

``python -m benchmarks.data [--tokens 60] [--rounds 5] [--workers 2]``

The text is Python's standard library in a parquet file, in documents of 3,000 characters, the typical length in
FineWeb. Preparation includes streaming the parquet file, encoding, splitting, writing, syncing, checksums and the
manifest. The baseline is ``encode_ordinary``, document by document in one thread. Both alternate on the same core, and
preparation gets one core per worker. Rates are medians over the rounds; shares are medians of the share in each round.
GPT-2's vocabulary comes from the network or from TIKTOKEN_CACHE_DIR.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median

import pyarrow
from pyarrow import parquet

from trainers.data import Prefetcher, Recipe, Shards, tokenize
from trainers.data.corpus import standard_library
from trainers.data.tokenizer import gpt2_encoding

CHARACTERS = 3_000
READ_TOKENS = 200_000_000
READS = ((8, 128), (64, 2048))
"""Batch size and sequence length of the demo and of the published runs."""


def documents(tokens: int) -> list[str]:
    """Returns documents with about ``tokens`` tokens."""
    encoding = gpt2_encoding()
    found = []
    for document in cycle(standard_library().files):
        text = document.text() or ""
        for start in range(0, len(text), CHARACTERS):
            found.append(text[start : start + CHARACTERS])
            tokens -= len(encoding.encode_ordinary(found[-1]))
        if tokens <= 0:
            return found
    raise AssertionError("cycle ends only when it is empty")


def timed(work: Callable[[], int], cores: set[int]) -> tuple[float, float]:
    """Returns tokens per second of wall time and per second of CPU time, summed over threads, on ``cores``."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # new threads inherit it
    try:
        wall, processor = time.perf_counter(), time.process_time()
        tokens = work()
        return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - processor)
    finally:
        os.sched_setaffinity(0, everywhere)


def reading(shards: Shards, batch: int, T: int) -> float:
    """Returns tokens per second through the ``Prefetcher``."""
    steps = READ_TOKENS // (batch * T)
    started = time.perf_counter()
    with Prefetcher(shards, seed=1, T=T, batch_size=batch, end_step=steps) as batches:
        read = sum(block_BU.shape[0] * T for block_BU in batches)
    return read / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=60, help="millions")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    encoding = gpt2_encoding()
    texts = documents(options.tokens * 1_000_000)
    cores = sorted(os.sched_getaffinity(0))[: options.workers]
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "text.parquet", Path(name) / "out"
        parquet.write_table(pyarrow.table({"text": texts}), source, row_group_size=1000)

        def alone() -> int:
            return sum(len(encoding.encode_ordinary(text)) for text in texts) + len(texts)

        def prepared(workers: int) -> int:
            shutil.rmtree(out, ignore_errors=True)
            recipe = Recipe(source=str(source), shard_tokens=2_000_000, val_tokens=100_000)
            return tokenize(recipe, out, workers=workers).tokens

        ways: dict[str, tuple[Callable[[], int], int]] = {"tiktoken alone, 1 core": (alone, 1)}
        for workers in sorted({1, len(cores)}):
            ways[f"preparation, {workers} worker(s)"] = (lambda workers=workers: prepared(workers), workers)  # type: ignore[misc]
        prepared(1)  # imports modules and loads the vocabulary
        rates: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for i in range(options.rounds):
            for way, (work, used) in ways.items() if i % 2 else reversed(ways.items()):
                wall, processor = timed(work, set(cores[:used]))
                rates[way].append((wall / used, processor))
        print(f"{len(texts):,} documents; million tokens a second and core, and as a share of tiktoken alone")
        print(f"{'':28}{'of wall time':>20}{'of processor time':>22}   (median of {options.rounds})")
        alone_rates = rates["tiktoken alone, 1 core"]
        for way, measured in rates.items():
            line = f"{way:28}"
            for clock, width in ((0, 12), (1, 14)):
                rate = median(found[clock] for found in measured)
                share = median(a[clock] / b[clock] for a, b in zip(measured, alone_rates, strict=True))
                line += f"{rate / 1e6:>{width}.2f}{share:>8.2f}"
            print(line)
        shards = Shards.match(str(out / "train-*.bin"))
        for batch, T in READS:
            rate = max(reading(shards, batch, T) for _ in range(options.rounds))
            print(f"reading batches of {batch} x {T}: {rate / 1e6:.0f} million tokens a second")


if __name__ == "__main__":
    main()

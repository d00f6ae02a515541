"""Unbroken text: how it is cut, that the tokens of all other text stay the same, and that the time is linear."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.study import DataSpec
from trainers.data import prepare, words
from trainers.data.corpus import standard_library
from trainers.data.sources import SAMPLE_CHARACTERS
from trainers.data.tokenizer import from_encoding, train_bpe
from trainers.data.words import split_for_encoding, split_long_words

ALPHABETS = ("a", "ACGT", "émñ", "漢字", "0123", "=-_", " ", " \t\n", "\x1c!", "\u0301\u0308", "a b", "a1", "if(x){}")
UNBROKEN = ALPHABETS[:10]
"""Alphabets whose texts are a single word of the pattern."""
RUNS = re.compile(r"[^\W\d_]+|\d+|\s+|(?:[^\w\s]|_)+")


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return train_bpe([document.text() or "" for document in standard_library().files[:20]], 500)


def made_of(alphabet: str, length: int) -> str:
    return "".join(random.Random(0).choices(alphabet, k=length))


texts = st.lists(
    st.builds(lambda alphabet, length: made_of(alphabet, length), st.sampled_from(ALPHABETS), st.integers(1, 100)),
    max_size=12,
).map("".join)


@given(texts | st.text(max_size=200), st.integers(1, 20))
def test_only_long_words_are_cut(text: str, block: int) -> None:
    pieces = list(split_long_words(text, block))
    assert "".join(pieces) == text
    assert all(pieces)
    longest = max(map(len, RUNS.findall(text)), default=0)
    if longest < 2 * block - 1 and "\x1c" not in text:
        assert pieces == [text] * bool(text)
    if "\x1c" not in text:  # it is white space to Python's \s
        assert all(len(run) <= 3 * block for piece in pieces for run in RUNS.findall(piece))


@settings(max_examples=40)
@given(text=texts)
def test_pieces_decode_to_the_text(encoding: tiktoken.Encoding, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "ENCODING_BLOCK", 16)
        patch.setattr(words, "PIECE_CHARACTERS", 64)
        assert all(len(piece) <= 64 for piece in split_for_encoding(text))
        assert encoding.decode(from_encoding(encoding).encode(text).tolist()) == text


def test_the_tokens_of_natural_text_stay_the_same(encoding: tiktoken.Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of more than one piece are cut where a word begins in any case."""
    text = "\n".join(document.text() or "" for document in standard_library().files[20:120])
    monkeypatch.setattr(words, "PIECE_CHARACTERS", 10_000)
    monkeypatch.setattr(words, "ENCODING_BLOCK", 1000)
    assert len(list(split_for_encoding(text))) > len(text) // 10_000
    plain = encoding.encode_to_numpy(text, disallowed_special=())
    assert np.array_equal(from_encoding(encoding).encode(text), plain)


@pytest.mark.parametrize("alphabet", UNBROKEN)
def test_a_million_unbroken_characters(encoding: tiktoken.Encoding, alphabet: str) -> None:
    """tiktoken refuses a million white-space characters, and training on any million unbroken characters took
    minutes."""
    text = made_of(alphabet, 1_200_000) + "end"
    start = time.perf_counter()
    assert encoding.decode(from_encoding(encoding).encode(text).tolist()) == text
    train_bpe([text, *(document.text() or "" for document in standard_library().files[:5])], 300)
    assert time.perf_counter() - start < 30


def test_time_is_linear_in_the_length_of_a_word(tmp_path: Path) -> None:
    def seconds(length: int) -> float:
        folder = tmp_path / str(length)
        folder.mkdir()
        for number in range(2):
            (folder / f"{number}.txt").write_text(made_of("ACGT", length))
        spec = DataSpec(source="text", path=str(folder), tokenizer="bpe", vocab_size=400)
        start = time.process_time()
        tokens = prepare(spec, tmp_path / "home")
        assert tokens.train.tokens + tokens.validation.tokens < length
        return time.process_time() - start

    seconds(1000)  # imports the modules
    assert SAMPLE_CHARACTERS > 1_600_000
    assert seconds(1_600_000) < 3 * seconds(800_000)

"""Text to ids and back."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.errors import InvalidInput
from trainers.data import tokenizer
from trainers.data.corpus import standard_library

TEXT = Path(tokenizer.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def encoding():
    return tokenizer.train_bpe([TEXT], 400)


def test_bpe_has_exactly_its_vocabulary(encoding) -> None:
    tokens = tokenizer.tokens_of(encoding)
    assert encoding.n_vocab == len(tokens) + 1 == 400
    assert set(tokens[:256]) == {bytes([byte]) for byte in range(256)}, "a byte has no id, so some text has no tokens"
    assert len(set(tokens)) == 399
    assert encoding.eot_token == 399


def test_bpe_is_deterministic(encoding) -> None:
    assert tokenizer.tokens_of(tokenizer.train_bpe([TEXT], 400)) == tokenizer.tokens_of(encoding)


def test_bpe_compresses(encoding) -> None:
    assert len(encoding.encode_ordinary(TEXT)) < 0.6 * len(TEXT.encode())


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([TEXT, "a<|endoftext|>b", "\r\n \t\n"]))
def test_bpe_round_trip(encoding, text: str) -> None:
    ids = tokenizer.from_encoding(encoding).encode(text)
    assert encoding.decode(ids.tolist()) == text
    assert all(ids < encoding.eot_token), "text was encoded as the end-of-text token"


def test_bpe_round_trip_of_the_whole_library(encoding) -> None:
    encode = tokenizer.from_encoding(encoding).encode
    for document in standard_library().files[::20]:
        if text := document.text():
            assert encoding.decode(encode(text).tolist()) == text, document.name


def test_bpe_is_kept_as_json(encoding, tmp_path: Path) -> None:
    tokenizer.save_encoding(encoding, tmp_path / "bpe.json")
    loaded = tokenizer.load_encoding(tmp_path / "bpe.json")
    assert loaded.encode_ordinary(TEXT) == encoding.encode_ordinary(TEXT)
    assert (loaded.eot_token, loaded.n_vocab) == (encoding.eot_token, encoding.n_vocab)


def test_bytes_are_utf8() -> None:
    bytes_tokenizer = tokenizer.bytes_tokenizer()
    assert bytes_tokenizer.encode("aé\n").tolist() == [97, 0xC3, 0xA9, 10]
    assert (bytes_tokenizer.vocab_size, bytes_tokenizer.end_of_text) == (256, 0)


@pytest.mark.parametrize(
    ("text", "vocab_size", "problem"),
    [("abc", 256, "too small"), ("ab ab", 300, "the text only has pairs for 25[89] ids")],
)
def test_impossible_vocabulary(text: str, vocab_size: int, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as caught:
        tokenizer.train_bpe([text], vocab_size)
    assert (caught.value.field, caught.value.value) == ("data.vocab_size", vocab_size)


def test_gpt2_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})  # another test in this process may have loaded it
    with pytest.raises(InvalidInput, match="TIKTOKEN_CACHE_DIR") as caught:
        tokenizer.gpt2_encoding()
    assert (caught.value.field, caught.value.value) == ("data.tokenizer", "gpt2")

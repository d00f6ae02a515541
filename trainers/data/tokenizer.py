"""From text to token ids: plain bytes, byte pairs trained on the text itself, or GPT-2's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InvalidInput
from trainers.data.words import ENCODING_BLOCK, TRAINING_BLOCK, split_for_encoding, split_long_words

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's pattern for splitting a text into words; no byte pair spans two words."""


@dataclass(frozen=True)
class Tokenizer:
    """Encodes a text as ids ``0..vocab_size - 1``, and defines the id that precedes each document."""

    encode: Callable[[str], NDArray[np.uint16]]
    end_of_text: int
    vocab_size: int
    encode_marked: Callable[[str], NDArray[np.uint16]] | None = None
    """Encodes ``<|endoftext|>`` in a text as the end-of-text id, if the tokenizer supports it."""

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.uint16]:
        """Returns the concatenated ids of the texts, each preceded by the end-of-text id."""
        if self.encode_marked and all(len(text) < 2 * ENCODING_BLOCK for text in texts):
            marked = "".join(f"{END_OF_TEXT}{text}" for text in texts)
            if marked.count(END_OF_TEXT) == len(texts):  # no text contains it
                # A single call for all texts: a thread then acquires the interpreter lock once a chunk.
                return self.encode_marked(marked)
        start = np.array([self.end_of_text], dtype=np.uint16)
        return np.concatenate([start[:0], *(ids for text in texts for ids in (start, self.encode(text)))])


def bytes_tokenizer() -> Tokenizer:
    """Encodes the bytes of UTF-8. NUL precedes each document, and is removed from the text."""
    return Tokenizer(lambda text: np.frombuffer(text.replace("\0", "").encode(), np.uint8).astype(np.uint16), 0, 256)


def from_encoding(encoding: tiktoken.Encoding) -> Tokenizer:
    """Wraps an encoding. The end-of-text token in a document is treated as text and encoded as its characters."""

    def encode(text: str) -> NDArray[np.uint16]:
        pieces = [encoding.encode_to_numpy(piece, disallowed_special=()) for piece in split_for_encoding(text)]
        return np.concatenate([np.array([], dtype=np.uint16), *pieces]).astype(np.uint16)

    def encode_marked(text: str) -> NDArray[np.uint16]:
        ids = encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT}, disallowed_special=())
        return ids.astype(np.uint16)

    return Tokenizer(encode, encoding.eot_token, encoding.n_vocab, encode_marked)


def gpt2_encoding() -> tiktoken.Encoding:
    """Returns a new object with GPT-2's 50257 ids. ``r50k_base`` is the same encoding as ``gpt2``, in one file instead
    of two.

    Raises:
        InvalidInput: the encoding is not cached and cannot be downloaded.
    """
    import tiktoken
    from tiktoken_ext.openai_public import r50k_base

    try:
        return tiktoken.Encoding(**r50k_base())
    except (OSError, ValueError) as error:  # no network, or a damaged download
        raise InvalidInput(
            "data.tokenizer",
            "gpt2",
            f"cannot be loaded ({type(error).__name__})",
            "connect to the network once, or set TIKTOKEN_CACHE_DIR to a folder with tiktoken's r50k_base, "
            "or choose bpe or bytes",
        ) from error


UNTRAINED: Mapping[str, Callable[[], Tokenizer]] = {
    "bytes": bytes_tokenizer,
    "gpt2": lambda: from_encoding(gpt2_encoding()),
}
"""Tokenizers that are not trained on a text."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> tiktoken.Encoding:
    """Trains a byte-level BPE: the 256 bytes, ``vocab_size - 257`` merges, and the end-of-text token as the last id.

    Training runs in a thread of its own, because it handles no signal: Ctrl-C ends the wait for it.

    Raises:
        InvalidInput: ``vocab_size`` is below 257, or the texts are too short for that many merges.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise InvalidInput(
            "data.vocab_size", vocab_size, "is too small for bpe", "give 257 or more, or set data.tokenizer to bytes"
        )
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    words = (piece for text in texts for piece in split_long_words(text, TRAINING_BLOCK))
    _in_a_thread(lambda: model.train_from_iterator(words, trainer))
    byte_of = _byte_of_character()
    spelled = sorted(model.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(byte_of[character] for character in word) for word, _ in spelled]
    if len(tokens) != vocab_size - 1:
        raise InvalidInput(
            "data.vocab_size",
            vocab_size,
            f"is too large: the text only has pairs for {len(tokens) + 1} ids",
            "lower it, give more text, or set data.tokenizer to bytes",
        )
    return _encoding(tokens)


def _in_a_thread(work: Callable[[], None]) -> None:
    """Runs ``work`` in a thread that does not keep the process alive, and raises its exception."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    Thread(target=run, name="byte-pairs", daemon=True).start()
    done.result()


def save_encoding(encoding: tiktoken.Encoding, path: Path) -> None:
    """Writes an encoding from ``train_bpe`` as JSON: the tokens in hexadecimal, sorted by id."""
    path.write_text(json.dumps({"tokens": [token.hex() for token in tokens_of(encoding)]}), encoding="utf-8")


def load_encoding(path: Path) -> tiktoken.Encoding:
    """Reads an encoding that ``save_encoding`` wrote."""
    return _encoding([bytes.fromhex(token) for token in json.loads(path.read_text(encoding="utf-8"))["tokens"]])


def tokens_of(encoding: tiktoken.Encoding) -> list[bytes]:
    """Returns the tokens sorted by id, without the end-of-text token."""
    return [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]


def _encoding(tokens: list[bytes]) -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.Encoding(
        f"oec-bpe-{len(tokens) + 1}",
        pat_str=SPLIT,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={END_OF_TEXT: len(tokens)},
        explicit_n_vocab=len(tokens) + 1,
    )


def _byte_of_character() -> dict[str, int]:
    """Returns the inverse of the byte-level alphabet, in which printable Latin-1 characters represent themselves and
    the other bytes, in order, are the characters from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(moved)}

"""From text to token ids: plain bytes, byte pairs trained on the text itself, or GPT-2's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InvalidInput

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's division of a text into words, which no pair crosses."""


@dataclass(frozen=True)
class Tokenizer:
    """What turns a text into ids ``0..vocab_size - 1``, and the id that stands before each document."""

    encode: Callable[[str], NDArray[np.uint16]]
    end_of_text: int
    vocab_size: int
    encode_marked: Callable[[str], NDArray[np.uint16]] | None = None
    """Encodes ``<|endoftext|>`` in a text as the id, if this tokenizer can."""

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.uint16]:
        """The ids of the texts one after the other, each behind the end-of-text id."""
        if self.encode_marked:
            marked = "".join(f"{END_OF_TEXT}{text}" for text in texts)
            if marked.count(END_OF_TEXT) == len(texts):  # no text spells it out
                # One call for all: threads meet at the interpreter's lock once a chunk, not once a document.
                return self.encode_marked(marked)
        start = np.array([self.end_of_text], dtype=np.uint16)
        return np.concatenate([start[:0], *(ids for text in texts for ids in (start, self.encode(text)))])


def bytes_tokenizer() -> Tokenizer:
    """The 256 bytes of UTF-8. NUL stands before a document, and is left out of the text."""
    return Tokenizer(lambda text: np.frombuffer(text.replace("\0", "").encode(), np.uint8).astype(np.uint16), 0, 256)


def from_encoding(encoding: tiktoken.Encoding) -> Tokenizer:
    """A text that spells out the end-of-text token is text: it is encoded as its characters."""

    def encode(text: str) -> NDArray[np.uint16]:
        return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)

    def encode_marked(text: str) -> NDArray[np.uint16]:
        ids = encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT}, disallowed_special=())
        return ids.astype(np.uint16)

    return Tokenizer(encode, encoding.eot_token, encoding.n_vocab, encode_marked)


def gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's 50257 ids, a new object each time. ``r50k_base`` is the same encoding as ``gpt2``, in one file instead of
    two.

    Raises:
        InvalidInput: it is neither cached nor to be had from the network.
    """
    import tiktoken
    from tiktoken_ext.openai_public import r50k_base

    try:
        return tiktoken.Encoding(**r50k_base())
    except (OSError, ValueError) as error:  # no network; a damaged download
        raise InvalidInput(
            "data.tokenizer",
            "gpt2",
            f"can not be loaded ({type(error).__name__})",
            "connect to the network once, or set TIKTOKEN_CACHE_DIR to a folder where tiktoken has r50k_base, "
            "or choose bpe or bytes",
        ) from error


UNTRAINED: Mapping[str, Callable[[], Tokenizer]] = {
    "bytes": bytes_tokenizer,
    "gpt2": lambda: from_encoding(gpt2_encoding()),
}
"""Tokenizers that need no text to be made from."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> tiktoken.Encoding:
    """A byte-level BPE: the 256 bytes, ``vocab_size - 257`` merges, and the end-of-text token as the last id.

    Raises:
        InvalidInput: ``vocab_size`` leaves no room for the bytes, or the texts are too few for as many merges.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise InvalidInput(
            "data.vocab_size", vocab_size, "is too small for bpe", "257 is the least, or choose data.tokenizer bytes"
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
    model.train_from_iterator(texts, trainer)
    byte_of = _byte_of_character()
    spelled = sorted(model.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(byte_of[character] for character in word) for word, _ in spelled]
    if len(tokens) != vocab_size - 1:
        raise InvalidInput(
            "data.vocab_size",
            vocab_size,
            f"is too large: the text has pairs for {len(tokens) + 1} ids",
            "lower it, give more text, or choose data.tokenizer bytes",
        )
    return _encoding(tokens)


def save_encoding(encoding: tiktoken.Encoding, path: Path) -> None:
    """Write an encoding of ``train_bpe`` as JSON: the tokens in hexadecimal, in the order of their ids."""
    path.write_text(json.dumps({"tokens": [token.hex() for token in tokens_of(encoding)]}), encoding="utf-8")


def load_encoding(path: Path) -> tiktoken.Encoding:
    """The encoding that ``save_encoding`` wrote."""
    return _encoding([bytes.fromhex(token) for token in json.loads(path.read_text(encoding="utf-8"))["tokens"]])


def tokens_of(encoding: tiktoken.Encoding) -> list[bytes]:
    """The tokens by id, without the end-of-text token."""
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
    """Inverse of the byte-level alphabet: printable Latin-1 characters stand for themselves, the other bytes are
    moved, in their order, to 256 and above."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(moved)}

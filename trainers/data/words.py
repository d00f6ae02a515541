"""Cuts a text so that a tokenizer's work per call is bounded.

Tokenizers split a text into words by GPT-2's pattern (``trainers.data.tokenizer.SPLIT``): runs of letters, of digits,
of white space, or of anything else. Training byte pairs takes time quadratic in the length of a word, and the pattern
itself fails on about a million white-space characters in a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

ENCODING_BLOCK = 1 << 16
"""For encoding: the pattern copes with 2**19 characters of white space, and no natural text has a word of 2**17."""
TRAINING_BLOCK = 1 << 7
"""For training byte pairs: a token of 256 characters would be of no use."""
PIECE_CHARACTERS = 1 << 20
"""Text that a tokenizer encodes in one call, a few tenths of a second without a look at signals."""
_OTHER = re.compile("(?:[^\\w\\s]|[_\x1c-\x1f])++")
"""Neither letters nor digits nor white space; unlike the pattern, Python takes four control characters for space."""
_BEFORE_SPACE = re.compile(r"(?<=\S)[ \n]")
"""Where a word begins in any case, because only white space that follows white space can belong to an earlier word."""


def split_long_words(text: str, block: int) -> Iterator[str]:
    """Yields ``text`` in pieces in which no word is longer than ``2 * block`` characters.

    It cuts only within words of at least ``2 * block`` characters, so the tokens of any other text stay the same.
    """
    start = 0
    for place in range(block, len(text) - block + 1, block):
        if _is_one_word(text[place - block : place + block]):
            yield text[start:place]
            start = place
    if start < len(text):
        yield text[start:]


def split_for_encoding(text: str) -> Iterator[str]:
    """Yields ``text`` in pieces of about ``PIECE_CHARACTERS`` at most, without a word that a tokenizer cannot handle.

    The tokens of the pieces are those of the text, unless a word is longer than ``2 * ENCODING_BLOCK``, or there is no
    white space in ``PIECE_CHARACTERS``.
    """
    for part in split_long_words(text, ENCODING_BLOCK):
        start = 0
        while len(part) - start > PIECE_CHARACTERS:
            limit = start + PIECE_CHARACTERS
            spaces = [match.start() for match in _BEFORE_SPACE.finditer(part, limit - ENCODING_BLOCK, limit)]
            end = spaces[-1] if spaces else limit
            yield part[start:end]
            start = end
        yield part[start:]


def _is_one_word(text: str) -> bool:
    """Whether all characters are of one kind; on natural text it looks at the first few."""
    return text.isalpha() or text.isspace() or text.isnumeric() or _OTHER.fullmatch(text) is not None

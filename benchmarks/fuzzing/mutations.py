"""Files as an editor, a disk or a script may leave them: valid files with a few changes that hypothesis chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

WORDS = (
    b"", b"0", b"-1", b"1e999", b"-0.0", b"nan", b"inf", b"null", b"true", b"~", b"[]", b"{}", b"[[", b"}", b'"', b"'",
    b":", b",", b"\n", b"\r\n", b"\t", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"- ", b"&a ", b"*a", b"<<: ",
    b"!!python/object:os.system ", b"../../x", b"/etc/passwd", b"9" * 400, b"2026-11-31", b"0x10", b"1_000", b"1e-400",
    b"\xe2\x80\xa8", b"</script>", b"=1+1", b"finished", b"diverged", b"crashed", b"tiny", b"baseline", b"z-loss",
)  # fmt: skip
"""Insertions and replacements: tokens with a meaning to parsers, and unexpected ones."""

Mutation = Callable[[bytes], bytes]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """Draws one change: a span removed, doubled or replaced; a byte flipped; lines swapped; the end cut off."""
    kind = draw(st.sampled_from(("remove", "double", "replace", "insert", "flip", "lines", "cut", "field")))
    at, length = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 40))
    word = draw(st.one_of(st.sampled_from(WORDS), st.binary(max_size=8)))
    other = draw(st.floats(0, 1, exclude_max=True))

    def mutate(content: bytes) -> bytes:
        start = int(at * (len(content) + 1))
        before, span, after = content[:start], content[start : start + length], content[start + length :]
        if kind == "remove":
            return before + after
        if kind == "double":
            return before + span + span + after
        if kind == "replace":
            return before + word + after
        if kind == "insert":
            return before + word + span + after
        if kind == "flip":
            return before + bytes(byte ^ (1 << length % 8) for byte in span[:1]) + span[1:] + after
        if kind == "cut":
            return before
        if kind == "field":
            return in_place_of_a_field(content, at, word)
        lines = content.splitlines(keepends=True)
        if lines:
            one, two = int(at * len(lines)), int(other * len(lines))
            lines[one], lines[two] = lines[two], lines[one]
        return b"".join(lines)

    return mutate


def in_place_of_a_field(content: bytes, at: float, word: bytes) -> bytes:
    """Replaces the text between two separators by ``word``, which is likely to parse and then to be validated."""
    separators = [i for i, byte in enumerate(content) if byte in b" ,:\n[]{}"]
    if len(separators) < 2:
        return word
    index = int(at * (len(separators) - 1))
    return content[: separators[index] + 1] + word + content[separators[index + 1] :]


def mutated(valid: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Draws one of the ``valid`` contents with one to four changes."""

    def changed(content: bytes, changes: list[Mutation]) -> bytes:
        for change in changes:
            content = change(content)
        return content

    return st.builds(changed, st.sampled_from(valid), st.lists(mutations(), min_size=1, max_size=4))

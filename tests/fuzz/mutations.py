"""Inputs for parsers: examples that are valid, changed in a few places, and anything at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

INTERESTING = (0, -1, 1, 2**31, 2**63, 2**64 - 1, -(2**63), 10**9)
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from(INTERESTING)
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["", "\ud800", "\x00", "9" * 5000, "../x"])
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed_bytes(draw: st.DrawFn, examples: Sequence[bytes]) -> bytes:
    """An example after a few changes: bytes replaced, taken out, put in, repeated, and the end cut off."""
    data = bytearray(draw(st.sampled_from(list(examples))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        kind = draw(st.sampled_from(["replace", "insert", "remove", "repeat", "cut", "flip"]))
        if kind == "replace":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=12))
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + 40 * length]
        elif kind == "cut":
            del data[at:]
        elif data:
            data[at % len(data)] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def bytes_like(*examples: bytes) -> st.SearchStrategy[bytes]:
    """Changed examples, and bytes of any kind."""
    return changed_bytes(examples) | st.binary(max_size=200)


@st.composite
def changed_text(draw: st.DrawFn, examples: Sequence[str]) -> str:
    """An example after a few changes, of which most are made of the characters of the examples."""
    text = draw(st.sampled_from(list(examples)))
    characters = st.sampled_from(sorted({character for example in examples for character in example})) | st.characters()
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 6))
        put_in = draw(st.text(characters, max_size=6))
        times = draw(st.sampled_from([1, 1, 1, 50]))
        text = text[:at] + put_in * times + text[at + length :]
    return text


def text_like(*examples: str) -> st.SearchStrategy[str]:
    """Changed examples, and text of any kind."""
    return changed_text(examples) | st.text(max_size=80)


@st.composite
def changed_plain(draw: st.DrawFn, example: Any) -> Any:
    """A nested plain value in which a few parts are replaced, left out or added."""
    return _changed(draw, example, draw(st.integers(1, 3)))


def _changed(draw: st.DrawFn, value: Any, changes: int) -> Any:
    if not changes:
        return value
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    kind = draw(st.sampled_from(["into", "into", "into", "remove", "replace", "add"])) if inside else "replace"
    if kind == "replace":
        return draw(PLAIN | st.binary(max_size=20))
    copy = dict(value) if isinstance(value, dict) else list(value)
    where = draw(st.sampled_from(inside))
    if kind == "into":
        copy[where] = _changed(draw, copy[where], 1)
    elif kind == "remove":
        del copy[where]
    elif isinstance(copy, dict):
        copy[draw(st.text(max_size=5))] = draw(PLAIN)
    else:
        copy.insert(where, draw(PLAIN))
    return _changed(draw, copy, changes - 1)

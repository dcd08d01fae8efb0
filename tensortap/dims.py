"""The dims grammar: names of a tensor's dimensions and how each is split over parallel axes.

``docs/dims.md`` is the reference. The grammar is the one that SGLang's comparator documents, so that its users'
annotations work unchanged; axis names are open (whatever the recorded parallel layout knows).

    b s[cp:zigzag,sp] (heads*head_dim)[attn_tp] 1 # ep:replicated dp:=attn_dp
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace


class DimsError(ValueError):
    """A dims string that cannot be understood, or does not fit the tensor it describes."""

    hint = "--override-dims 'NAME:DIMS' corrects dims without a new recording"
    name = "bad-dims"


BATCH = "b"
SEQUENCE = "s"
TOKEN = "t"
REQUEST = "request"
"""A dimension with one row per request, that of its last token in the pass: it is aligned as tokens are."""
SQUEEZED = "1"

_ATTENTION_AXES = ("attn_tp", "attn_dp", "attn_cp")
_EXPERT_AXES = ("moe_ep", "moe_tp", "moe_dp", "ep", "etp", "edp")
COMMON_AXES: frozenset[str] = frozenset(
    ("tp", "pp", "dp", "cp", "sp", "recompute_pseudo", *_ATTENTION_AXES, *_EXPERT_AXES)
)
"""Axis names that are understood even where a run did not record them (its size is then 1)."""

Ordering = Literal["natural", "zigzag"]

LONGEST_DIMS = 10_000
"""Characters."""

_ROW_ORDERS: dict[str, Literal["experts", "permutation"]] = {"expert_order": "experts", "permuted": "permutation"}
_NAME = re.compile(r"[A-Za-z_]\w*")
_DIMENSION = re.compile(r"(?P<name>[A-Za-z_]\w*|\([^()\[\]]*\)|1)(?:\[(?P<modifiers>[^\[\]]*)\])?")


class Modifier(Struct, frozen=True):
    """How one dimension is split over one parallel axis."""

    axis: str
    ordering: Ordering = "natural"
    partial: bool = False
    """True: the ranks hold summands of the whole dimension instead of pieces of it."""

    def __str__(self) -> str:
        qualifiers = (["zigzag"] if self.ordering == "zigzag" else []) + (["partial"] if self.partial else [])
        return self.axis + (":" + "+".join(qualifiers) if qualifiers else "")


class Dimension(Struct, frozen=True):
    """One dimension of a tensor: its name or, fused, its names outermost first."""

    names: tuple[str, ...]
    modifiers: tuple[Modifier, ...] = ()
    """Outermost split first: the last one is undone first."""

    @property
    def squeezed(self) -> bool:
        """True for ``1``, a dimension of length 1 without a meaning."""
        return self.names == (SQUEEZED,)

    @property
    def fused(self) -> bool:
        return len(self.names) > 1

    @property
    def label(self) -> str:
        """The dimension as it is written, without modifiers."""
        return f"({'*'.join(self.names)})" if self.fused else self.names[0]


class RowOrder(Struct, frozen=True):
    """Rows of ``t`` that are not in token order; ``comparator.plan.experts`` explains both kinds."""

    kind: Literal["experts", "permutation"]
    name: str
    """The tensor that says how the rows lie."""
    count: int | None = None
    """Experts in all, or choices of a token."""


class Dims(Struct, frozen=True):
    """A parsed dims string."""

    text: str
    dimensions: tuple[Dimension, ...]
    replicated: frozenset[str] = frozenset()
    """Axes over which all ranks hold the same."""
    data_parallel_axis: str | None = None
    """The axis named by ``dp:=AXIS``: each of its ranks holds tokens of its own."""
    row_order: RowOrder | None = None

    @property
    def axes(self) -> frozenset[str]:
        """Every axis that the dims name."""
        split = {modifier.axis for dimension in self.dimensions for modifier in dimension.modifiers}
        return self.replicated | split | ({self.data_parallel_axis} if self.data_parallel_axis else set())

    def index(self, name: str) -> int | None:
        """Position of the dimension called ``name``; None when there is none."""
        for position, dimension in enumerate(self.dimensions):
            if dimension.names == (name,):
                return position
        return None

    @property
    def token_dimensions(self) -> tuple[int, ...]:
        """Positions of the dimensions that count tokens: ``t``, or ``b`` and ``s``, or ``s`` alone."""
        token = self.index(TOKEN)
        if token is not None:
            return (token,)
        sequence = self.index(SEQUENCE)
        if sequence is None:
            return ()
        batch = self.index(BATCH)
        return (sequence,) if batch is None else (batch, sequence)

    @property
    def of_one_rank(self) -> Dims:
        """The dims of a single rank's array, taken by itself: nothing is split."""
        dimensions = tuple(replace(dimension, modifiers=()) for dimension in self.dimensions)
        return replace(self, dimensions=dimensions, replicated=frozenset())

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise DimsError unless there is one name per dimension of ``shape`` and ``1`` stands for length 1."""
        if len(shape) != len(self.dimensions):
            count = len(self.dimensions)
            raise DimsError(
                f"dims {self.text!r} name {count} dimension{'s' * (count != 1)}, but the tensor has "
                f"{len(shape)}: shape {list(shape)}"
            )
        for position, dimension in enumerate(self.dimensions):
            if dimension.squeezed and shape[position] != 1:
                raise DimsError(
                    f"dims {self.text!r} write dimension {position} as 1, but it has length {shape[position]}: "
                    f"shape {list(shape)}"
                )

    def check_axes(self, recorded: Collection[str]) -> None:
        """Raise DimsError when the dims name an axis that is neither in ``recorded`` nor a common one."""
        for axis in sorted(self.axes):
            if axis in COMMON_AXES or axis in recorded:
                continue
            import difflib

            known = sorted(COMMON_AXES | set(recorded))
            near = difflib.get_close_matches(axis, known, n=3)
            guess = f", did you mean {' or '.join(near)}" if near else ""
            raise DimsError(
                f"unknown axis {axis!r} in dims {self.text!r}{guess}; the recorded parallel layout has "
                f"{', '.join(sorted(recorded)) or 'no axes'}"
            )


def with_names(text: str, rank: int) -> str:
    """Dims of a tensor with so many dimensions: ``d0 d1 ...`` where ``text`` has declarations alone."""
    shape, mark, _ = text.partition("#")
    return text if not mark or shape.strip() or not rank else f"{' '.join(f'd{at}' for at in range(rank))} {text}"


@lru_cache(maxsize=4096)
def parse_dims(text: str) -> Dims:
    """Parse a dims string.

    Raises DimsError, which quotes the part that is wrong, for an empty string, a malformed dimension or
    modifier, a duplicated name or axis, an axis both split and replicated, and an unknown declaration. Without a
    dimension, declarations are those of a number (``# dp:replicated``); ``with_names`` makes them those of a tensor.
    """
    if len(text) > LONGEST_DIMS:
        raise DimsError(f"dims {text[:40]!r}... are {len(text)} characters long; {LONGEST_DIMS} is the most")
    shape, _, declarations = text.partition("#")
    tokens = _split_dimensions(shape, text)
    if not tokens and not declarations.strip():
        raise DimsError(f"dims {text!r} name no dimension")
    dimensions = tuple(_parse_dimension(token, text) for token in tokens)
    names = [name for dimension in dimensions if not dimension.squeezed for name in dimension.names]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise DimsError(f"dims {text!r} use the name {', '.join(map(repr, duplicates))} more than once")
    replicated, data_parallel_axis, row_order = _parse_declarations(declarations, text)
    split = {modifier.axis for dimension in dimensions for modifier in dimension.modifiers}
    both = sorted(replicated & split)
    if both:
        raise DimsError(f"dims {text!r} declare {', '.join(map(repr, both))} both split and replicated")
    return Dims(text, dimensions, replicated, data_parallel_axis, row_order)


def _split_dimensions(shape: str, text: str) -> list[str]:
    """Split at spaces outside brackets, so that ``s[cp, sp]`` and ``(a * b)`` may contain some."""
    tokens: list[str] = []
    current = ""
    depth = 0
    for character in shape:
        if character in "[(":
            depth += 1
        elif character in "])":
            depth -= 1
            if depth < 0:
                raise DimsError(f"dims {text!r} close a bracket that is not open: {character!r}")
        if character.isspace() and depth == 0:
            if current:
                tokens.append(current)
            current = ""
        else:
            current += character
    if depth:
        raise DimsError(f"dims {text!r} leave a bracket open in {current!r}")
    return [*tokens, current] if current else tokens


def _parse_dimension(token: str, text: str) -> Dimension:
    match = _DIMENSION.fullmatch(token)
    if match is None:
        raise DimsError(f"cannot read {token!r} in dims {text!r}; expected name, name[axis], (a*b)[axis] or 1")
    label, modifier_text = match.group("name"), match.group("modifiers")
    if label == SQUEEZED and modifier_text is not None:
        raise DimsError(f"the squeezed dimension {token!r} in dims {text!r} cannot be split over an axis")
    names: tuple[str, ...] = (TOKEN if label == REQUEST else label,)
    if label.startswith("("):
        names = tuple(name.strip() for name in label[1:-1].split("*"))
        if len(names) < 2:
            raise DimsError(f"the fused dimension {token!r} in dims {text!r} needs at least two names")
        for name in names:
            if _NAME.fullmatch(name) is None:
                raise DimsError(f"cannot read {name!r} in the fused dimension {token!r} of dims {text!r}")
    modifiers = () if modifier_text is None else _parse_modifiers(modifier_text, token, text)
    return Dimension(names, modifiers)


def _parse_modifiers(modifier_text: str, token: str, text: str) -> tuple[Modifier, ...]:
    modifiers = tuple(_parse_modifier(part.strip(), token, text) for part in modifier_text.split(","))
    axes = [modifier.axis for modifier in modifiers]
    duplicates = sorted({axis for axis in axes if axes.count(axis) > 1})
    if duplicates:
        raise DimsError(f"{token!r} in dims {text!r} names the axis {duplicates[0]!r} more than once")
    return modifiers


def _parse_modifier(part: str, token: str, text: str) -> Modifier:
    axis, _, qualifier_text = (piece.strip() for piece in part.partition(":"))
    if _NAME.fullmatch(axis) is None:
        raise DimsError(f"cannot read the axis {axis!r} of {token!r} in dims {text!r}")
    orderings: list[Ordering] = []
    partial = 0
    for qualifier in (piece.strip() for piece in qualifier_text.split("+")):
        if qualifier == "zigzag":
            orderings.append("zigzag")
        elif qualifier == "natural":
            orderings.append("natural")
        elif qualifier == "partial":
            partial += 1
        elif qualifier not in ("sharded", ""):
            raise DimsError(
                f"unknown qualifier {qualifier!r} of {token!r} in dims {text!r}; "
                f"known are sharded, partial, zigzag and natural"
            )
    if len(orderings) > 1:
        raise DimsError(f"{token!r} in dims {text!r} gives more than one ordering for {axis!r}")
    if partial > 1:
        raise DimsError(f"{token!r} in dims {text!r} says partial more than once for {axis!r}")
    return Modifier(axis, orderings[0] if orderings else "natural", partial == 1)


def _parse_declarations(declarations: str, text: str) -> tuple[frozenset[str], str | None, RowOrder | None]:
    replicated: set[str] = set()
    data_parallel_axis: str | None = None
    row_order: RowOrder | None = None
    for token in declarations.split():
        key, assigned, value = token.partition(":=")
        if assigned and key == "dp":
            if data_parallel_axis is not None:
                raise DimsError(f"dims {text!r} declare dp:= more than once")
            if _NAME.fullmatch(value) is None:
                raise DimsError(f"cannot read the axis of {token!r} in dims {text!r}")
            data_parallel_axis = value
        elif assigned and key in _ROW_ORDERS:
            if row_order is not None:
                raise DimsError(f"dims {text!r} declare the order of the rows more than once")
            row_order = _parse_row_order(_ROW_ORDERS[key], value, token, text)
        else:
            replicated.add(_parse_replicated(token, replicated, text))
    return frozenset(replicated), data_parallel_axis, row_order


def _parse_replicated(token: str, known: Collection[str], text: str) -> str:
    axis, _, word = token.partition(":")
    if word != "replicated" or _NAME.fullmatch(axis) is None:
        raise DimsError(
            f"cannot read {token!r} after '#' in dims {text!r}; expected AXIS:replicated, dp:=AXIS, "
            "expert_order:=NAME or permuted:=NAME"
        )
    if axis in known:
        raise DimsError(f"dims {text!r} declare {axis}:replicated more than once")
    return axis


def _parse_row_order(kind: Literal["experts", "permutation"], value: str, token: str, text: str) -> RowOrder:
    name, slash, count = value.partition("/")
    if not name or (slash and not (count.isascii() and count.isdigit() and int(count) > 0)):
        raise DimsError(f"cannot read {token!r} in dims {text!r}; expected {token.partition(':=')[0]}:=NAME/COUNT")
    return RowOrder(kind, name, int(count) if slash else None)


def count_rows(shape: tuple[int, ...], positions: tuple[int, ...]) -> int:
    """Rows of the token dimension at ``positions`` (batch and sequence count together); 1 without one."""
    rows = 1
    for position in positions:
        rows *= shape[position]
    return rows

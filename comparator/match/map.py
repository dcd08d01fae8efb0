"""``--map CONFIG``: make the names, dims and pieces of two frameworks comparable.

    map:
      - baseline: model.layers.{i}.self_attn.o_proj       # placeholders stand for the same text on both sides
        target: attn_output, layer_id={i}
        baseline_dims: b s h
      - baseline: model.layers.{i}.self_attn.q_proj
        target: qkv, layer_id={i}
        target_slice: {dim: h, sizes: [4, 1, 1], part: 0}  # the first of three pieces, four of six parts long

A rule gives records of both sides one name. It is the target's, unless the target is sliced: then the baseline's.
A record that several rules match appears once for each (a fused tensor and its pieces); one that none matches keeps
its name. Where names count anew on every rank (experts, layers of a pipeline stage), ``target_values: {i: i + pp * 4}``
computes the number that is the same on both sides. ``docs/dims.md`` describes the format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field
from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from comparator.errors import ComparatorError, PairError
from comparator.match.bundles import RunIndex
from comparator.match.entries import Entry
from comparator.options import Side
from comparator.patterns import compiled
from dumper.rules.expressions import Expression, ExpressionError
from tensortap.dims import Dims, DimsError, parse_dims

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class Slice(BaseModel):
    """One piece of a dimension that holds several things, such as q, k and v."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: str
    sizes: Annotated[list[int], Field(min_length=1)]
    """Lengths of the pieces, or their ratio; the dimension is cut in these proportions on every rank."""
    part: Annotated[int, Field(ge=0)]
    group: Annotated[int, Field(ge=1)] | None = None
    """Length of a group, when the pieces lie in groups (q, k, v of one head group after the other)."""


class Rule(BaseModel):
    """One line of the map."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str
    target: str
    baseline_dims: str | None = None
    target_dims: str | None = None
    baseline_slice: Slice | None = None
    target_slice: Slice | None = None
    baseline_values: Mapping[str, str] = {}
    """What placeholders stand for, computed from what was matched in the baseline and from the rank's coordinates:
    ``{e: e + ep * 16}`` for experts that are numbered anew on every rank."""
    target_values: Mapping[str, str] = {}


class MapConfig(BaseModel):
    """A map file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    map: list[Rule]


class Template(Struct, frozen=True):
    """``attn_output, layer_id={i}``: a name and tags in which placeholders stand for text."""

    name: str
    tags: tuple[tuple[str, str], ...]
    pattern: Any
    tag_patterns: tuple[tuple[str, Any], ...]
    """Compiled; the groups are the placeholders."""

    def match(self, entry: Entry) -> dict[str, str] | None:
        """What the placeholders stand for in a record; None when it does not match."""
        found = self.pattern.fullmatch(entry.name)
        if found is None:
            return None
        values: dict[str, str] = found.groupdict()
        for key, pattern in self.tag_patterns:
            if key not in entry.tags:
                return None
            tag = pattern.fullmatch(str(entry.tags[key]))
            if tag is None:
                return None
            for name, text in tag.groupdict().items():
                if values.setdefault(name, text) != text:
                    return None
        return values

    def fill(self, values: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Name and tags with the placeholders replaced."""

        def put(text: str) -> str:
            return _PLACEHOLDER.sub(lambda found: values[found[1]], text)

        return put(self.name), {key: put(value) for key, value in self.tags}


def parse_template(text: str, where: str) -> Template:
    """Read ``NAME, tag=value, ...``; raises ComparatorError that says where."""
    name, *tag_texts = (part.strip() for part in text.split(","))
    if not name:
        raise ComparatorError(f"{where}: {text!r} names no tensor")
    tags: list[tuple[str, str]] = []
    for tag in tag_texts:
        key, equals, value = (part.strip() for part in tag.partition("="))
        if not key or not equals:
            raise ComparatorError(f"{where}: {tag!r} is no tag; expected name=value")
        tags.append((key, value))
    patterns = tuple((key, _pattern(value, where)) for key, value in tags)
    return Template(name, tuple(tags), _pattern(name, where), patterns)


def _pattern(text: str, where: str) -> Any:
    """In linear time, unless a placeholder stands several times: that takes a reference back, which RE2 has not."""
    pattern = ""
    at = 0
    seen: set[str] = set()
    for found in _PLACEHOLDER.finditer(text):
        pattern += re.escape(text[at : found.start()])
        pattern += f"(?P={found[1]})" if found[1] in seen else f"(?P<{found[1]}>[^.]+?)"
        seen.add(found[1])
        at = found.end()
    rest = text[at:]
    if "{" in rest or "}" in rest:
        raise ComparatorError(f"{where}: cannot read {text!r}; a placeholder is written {{name}}")
    pattern += re.escape(rest)
    return re.compile(pattern) if "(?P=" in pattern else compiled(pattern, where)


class CompiledRule(Struct, frozen=True):
    """One rule, ready to be applied to one side."""

    template: Template
    result: Template
    dims: str | None
    piece: Slice | None
    values: Mapping[str, Expression] = field(default_factory=dict)
    text: str = ""
    """The rule's own words, for messages."""


class CutPiece(Struct, frozen=True):
    """The piece of a dimension that a slice names; implements ``comparator.match.entries.Piece``."""

    slice: Slice
    dims: str | None
    name: str
    """Of the record, for messages."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = self._axis(len(shape))
        length = sum(stop - start for start, stop in self._ranges(shape[axis]))
        return (*shape[:axis], length, *shape[axis + 1 :])

    def cut(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The piece of ``array``, which has the shape that was recorded."""
        axis = self._axis(array.ndim)
        ranges = self._ranges(array.shape[axis])
        return np.take(array, np.concatenate([np.arange(start, stop) for start, stop in ranges]), axis=axis)

    def _axis(self, ndim: int) -> int:
        if self.dims is None:
            raise PairError(f"the slice of {self.name} needs dims that name {self.slice.dim!r}")
        dims: Dims = parse_dims(self.dims)
        axis = next((at for at, one in enumerate(dims.dimensions) if one.label == self.slice.dim), None)
        if axis is None or axis >= ndim:
            raise DimsError(f"dims {self.dims!r} of {self.name} have no dimension {self.slice.dim!r} to slice")
        return axis

    def _ranges(self, length: int) -> list[tuple[int, int]]:
        """The rows of the piece: one range, or one per group."""
        piece = self.slice
        group = piece.group or length
        total = sum(piece.sizes)
        if length % group or (group % total):
            raise PairError(
                f"{self.name}: {group} elements of {piece.dim!r} cannot be cut in the proportions {piece.sizes}"
            )
        unit = group // total
        first = sum(piece.sizes[: piece.part]) * unit
        last = first + piece.sizes[piece.part] * unit
        return [(start + first, start + last) for start in range(0, length, group)]


Coordinates = Mapping[str, tuple[int, int]]
"""Axis to ``(rank, size)``."""


def _forms(
    entry: Entry, rules: Sequence[CompiledRule], world: Mapping[int, Coordinates], used: set[int]
) -> Sequence[Entry]:
    """What becomes of an entry, and of all of its kind."""
    found: list[Entry] = []
    for number, rule in enumerate(rules):
        values = rule.template.match(entry)
        if values is not None:
            used.add(number)
            found.append(_renamed(entry, rule, _computed(values, rule, entry, world.get(entry.rank, {}))))
    return found or (entry,)


def _computed(values: dict[str, str], rule: CompiledRule, entry: Entry, place: Coordinates) -> dict[str, str]:
    """The placeholders with those computed that the rule computes."""
    if not rule.values:
        return values
    known: dict[str, Any] = {"rank": entry.rank}
    for axis, (at, size) in place.items():
        known |= {axis: at, f"{axis}_size": size}
    known |= {name: int(text) if text.isdecimal() else text for name, text in values.items()}
    computed = dict(values)
    for name, expression in rule.values.items():
        absent = sorted(expression.names - set(known))
        if absent:
            raise ComparatorError(
                f"{rule.text}: rank {entry.rank} has no coordinate {absent[0]!r} (there are {', '.join(sorted(known))})"
            )
        found = expression.value(known)
        if found is None:
            raise ComparatorError(f"{rule.text}: {expression.text!r} cannot be computed for {entry.name}")
        computed[name] = str(found)
    return computed


def _renamed(entry: Entry, rule: CompiledRule, values: Mapping[str, str]) -> Entry:
    name, tags = rule.result.fill(values)
    kept = {key: value for key, value in entry.tags.items() if key not in dict(rule.template.tags)}
    dims = rule.dims or entry.dims
    piece = None if rule.piece is None else CutPiece(rule.piece, dims, entry.name)
    return replace(entry, name=name, tags={**kept, **tags}, dims=dims, piece=piece)


def load_map(path: Path) -> MapConfig:
    """Read a map file; raises ComparatorError that names file and key."""
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return MapConfig.model_validate(content)
    except OSError as error:
        raise ComparatorError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ComparatorError(f"{path} is not valid YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ComparatorError(f"{path}: {key}: {first['msg']}") from None


def compile_rules(config: MapConfig, side: Side, where: str) -> list[CompiledRule]:
    """The rules for one side; raises ComparatorError for templates and slices that make no sense."""
    compiled: list[CompiledRule] = []
    for number, rule in enumerate(config.map):
        place = f"{where}: map[{number}]"
        templates: dict[Literal["baseline", "target"], Template] = {
            "baseline": parse_template(rule.baseline, place),
            "target": parse_template(rule.target, place),
        }
        names = [set(_PLACEHOLDER.findall(text)) for text in (rule.baseline, rule.target)]
        if names[0] != names[1]:
            odd = sorted(names[0] ^ names[1])
            raise ComparatorError(f"{place}: the placeholder {{{odd[0]}}} must be on both sides")
        for piece in (rule.baseline_slice, rule.target_slice):
            if piece is not None and piece.part >= len(piece.sizes):
                raise ComparatorError(f"{place}: part {piece.part} of {len(piece.sizes)} sizes; parts count from 0")
        result = templates["baseline" if rule.target_slice is not None else "target"]
        dims = rule.baseline_dims if side == "baseline" else rule.target_dims
        piece = rule.baseline_slice if side == "baseline" else rule.target_slice
        _check_dims(dims, place)
        values = rule.baseline_values if side == "baseline" else rule.target_values
        unknown = sorted(set(values) - names[0])
        if unknown:
            raise ComparatorError(
                f"{place}: {side}_values computes {unknown[0]!r}, which is no placeholder of the rule"
            )
        expressions = {name: _expression(text, f"{place}: {side}_values.{name}") for name, text in values.items()}
        text = f"{place} ({rule.baseline if side == 'baseline' else rule.target})"
        compiled.append(CompiledRule(templates[side], result, dims, piece, expressions, text))
    return compiled


def _check_dims(dims: str | None, place: str) -> None:
    if dims is not None:
        try:
            parse_dims(dims)
        except DimsError as error:
            raise ComparatorError(f"{place}: {error}") from None


def _expression(text: str, where: str) -> Expression:
    try:
        return Expression(text, kind="value")
    except ExpressionError as error:
        raise ComparatorError(f"{where}: {error}") from None


def apply_map(index: RunIndex, path: Path, side: Side, world: Mapping[int, Coordinates]) -> tuple[RunIndex, list[str]]:
    """The index with the names, dims and pieces that the map file gives its records, and the rules that match none.

    ``world`` gives the coordinates of every rank.
    """
    rules = compile_rules(load_map(path), side, str(path))
    used: set[int] = set()
    # What a rule computes may depend on the coordinates of the rank.
    entries = index.entries.by_rank() if any(rule.values for rule in rules) else index.entries
    mapped = replace(index, entries=entries.replaced([_forms(kind, rules, world, used) for kind in entries.kinds]))
    return mapped, [rule.text for number, rule in enumerate(rules) if number not in used]

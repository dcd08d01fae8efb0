"""What is to be done with records, worked out once for all that are alike: whether the settings' filter lets them
through, and how much is kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from dumper.log_once import log
from dumper.rules.expressions import Expression
from dumper.rules.levels import FULL, Level, LevelRules
from dumper.settings import Settings
from dumper.values.memory_rows import MemoryRows
from dumper.values.source import Source
from dumper.writing.items import Description, TagsKey

MOST_PLANS = 50_000
"""Combinations of name and tags, or shapes of one of them, that are remembered; what counts without end must not fill
the memory."""


@dataclass(frozen=True)
class SmallTensors:
    """Tensors of one type and shape that are copied straight from their memory."""

    description: Description | None
    """None for tensors that cannot be."""
    nbytes: int = 0
    held: int = 0
    """Bytes that the storage must have, from the first element on: those of elements that are not kept as well."""
    itemsize: int = 0
    may_be_negated: bool = False
    """Whether the bytes in memory may not be the elements yet, which are to be negated."""
    may_be_conjugated: bool = False
    rows: MemoryRows | None = None
    """Of tensors whose rows do not lie one behind the other, or of which only every n-th is kept; ``nbytes`` is then
    the extent of all in memory."""
    reduced_to: str | None = None
    """``stats`` or ``hash`` where this, and not the tensor, is put into a slab; else None."""
    kind: int = -1
    """Of ``stats`` on the host: what ``dumper.values.statistics`` calls the type."""


_NOTHING = SmallTensors(None)


class Plan:
    """What is to be done with the records of one source, tags and dims."""

    __slots__ = (
        "chosen",
        "descriptions",
        "dims",
        "graph",
        "last",
        "last_on_device",
        "measured",
        "parts",
        "small",
        "source",
        "tags",
        "whole",
    )

    def __init__(
        self,
        source: Source,
        tags: TagsKey,
        dims: str | None,
        chosen: Level | None,
        graph: Mapping[str, str | int] | None = None,
    ) -> None:
        self.source = source
        self.tags = tags
        self.dims = dims
        self.graph = graph
        """Of values that replays of a CUDA graph leave: what is known of the graph."""
        self.chosen = chosen
        """None when the filter rejects them."""
        self.whole = chosen is not None and chosen.kind in ("full", "hash")
        """Whether all bytes of the value go to the writer."""
        self.measured = chosen is not None and chosen.kind == "stats"
        """Whether its statistics do."""
        self.descriptions: dict[tuple[Any, ...], Description] = {}
        self.small: dict[tuple[Any, ...], SmallTensors] = {}
        self.last: tuple[Any, Any, bool, Any, SmallTensors] = (None, None, False, None, _NOTHING)
        """Dtype, shape, whether it was recomputed, the strides where it was not contiguous, and what was worked out, of
        the small tensor that came last."""
        self.last_on_device: tuple[Any, Any, bool, Any, SmallTensors] = (None, None, False, None, _NOTHING)
        """The same of CUDA tensors."""
        self.parts: dict[tuple[str, str | None], Plan] = {}

    def part(self, name: str, dims: str | None) -> Plan:
        """The plan of one part of such values, at the same level."""
        found = self.parts.get((name, dims))
        if found is None:
            source = self.source.part(f"{self.source.name}.{name}")
            found = self.parts[name, dims] = Plan(source, self.tags, dims, self.chosen, self.graph)
        return found

    def describe(
        self,
        dtype: str | None,
        shape: tuple[int, ...] | None,
        recompute: bool,
        level: Level | None = None,
        summed_bytes: int | None = None,
    ) -> Description:
        """The one description of what is like this; ``level`` where it is not the chosen one."""
        # A gradient is computed in a backward pass anyway.
        recompute = recompute and self.source.stream == "value"
        key = (dtype, shape, recompute, level, summed_bytes)
        description = self.descriptions.get(key)
        if description is None:
            if len(self.descriptions) > MOST_PLANS:
                self.descriptions.clear()
            kept = level or self.chosen or FULL
            description = self.descriptions[key] = Description(
                self.source, self.tags, self.dims, dtype, shape, kept, recompute, self.graph, summed_bytes
            )
        return description

    def remember_small(self, key: tuple[Any, ...], found: SmallTensors) -> SmallTensors:
        """Keep what was worked out for tensors of one type and shape."""
        if len(self.small) > MOST_PLANS:
            self.small.clear()
        self.small[key] = found
        return found


class Moment(NamedTuple):
    """What rules can ask of a record that is not the same for all of one source and tags."""

    step: int | None
    recompute_status: str | None
    """``disabled`` outside activation checkpointing; inside, ``original`` the first time and then ``recompute``."""


class Choice:
    """The filter and the level rules of some settings, on one rank."""

    def __init__(self, settings: Settings, rank: int) -> None:
        self._rank = rank
        self._filter = Expression(settings.filter) if settings.filter else None
        self._levels = LevelRules.parse(settings.level) if settings.level else None
        conditions = [self._filter, *(rule for _, rule in self._levels.rules)] if self._levels else [self._filter]
        names = {name for condition in conditions if condition is not None for name in condition.names}
        self.asked = frozenset(names.intersection(Moment._fields))
        """The fields of a moment that the rules ask for."""

    def level(
        self, source: Source, tags: TagsKey, moment: Moment | None, more: Mapping[str, Any] = MappingProxyType({})
    ) -> Level | None:
        """The level of a record; None when the filter rejects it. ``more``: what conditions may name beside tags."""
        names = {**more, **dict(tags), "name": source.name, "rank": self._rank}
        if moment is not None:
            names.update(moment._asdict())
        if self._filter is not None and not self._filter.holds(names):
            return None
        if source.level is not None:
            try:
                return Level.parse(source.level)
            except ValueError as error:
                log().error("tensortap: %s: %s. The rules of the settings are used instead.", source.name, error)
        return self._levels.choose(names) if self._levels is not None else FULL

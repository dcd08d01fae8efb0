"""What the settings' filter and levels say of a record: whether it is kept, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from dumper.log_once import log
from dumper.rules.expressions import Expression
from dumper.rules.levels import FULL, Level, LevelRules
from dumper.settings import Settings
from dumper.values.source import Source
from dumper.writing.items import TagsKey


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

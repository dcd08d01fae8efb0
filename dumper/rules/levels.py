"""How much of a value is recorded, and the rules that choose it.

``full`` keeps all bytes; ``sample`` keeps some rows; ``stats`` keeps a few numbers; ``hash`` keeps a fingerprint of the
bytes. Rules are text: ``hash if layer_id > 3; sample(stride=16) if name.startswith("moe"); stats``. The first rule
that fits decides, a rule without ``if`` fits everything, and what no rule fits is recorded in full.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dumper.rules.expressions import Expression

KINDS = ("full", "sample", "stats", "hash")
_LEVEL = re.compile(r"(?P<kind>[a-z]+)(?:\s*\(\s*(?P<key>[a-z]+)\s*=\s*(?P<value>\d+)\s*\))?")
_HELP = (
    "a level is full, stats, hash, sample(rows=N) or sample(stride=N), followed by an optional 'if FILTER'; "
    "rules are joined by ';'"
)
DEFAULT_SAMPLE_ROWS = 8


@dataclass(frozen=True)
class Level:
    """One level. Of a sample, either ``rows`` (the first N) or ``stride`` (every N-th, from the first) is set."""

    kind: str
    rows: int | None = None
    stride: int | None = None

    @classmethod
    def parse(cls, text: str) -> Level:
        """Raises ValueError that quotes the text."""
        found = _LEVEL.fullmatch(text.strip())
        if not found or found["kind"] not in KINDS:
            raise ValueError(f"level {text!r}: unknown; {_HELP}")
        kind, key = found["kind"], found["key"]
        if key is None:
            return SAMPLE if kind == "sample" else cls(kind)
        if kind != "sample" or key not in ("rows", "stride") or int(found["value"]) == 0:
            raise ValueError(f"level {text!r}: cannot read it; {_HELP}")
        return cls(kind, **{key: int(found["value"])})

    def __str__(self) -> str:
        if self.kind != "sample":
            return self.kind
        return f"sample(stride={self.stride})" if self.stride else f"sample(rows={self.rows})"

    @property
    def row_slice(self) -> slice:
        """The rows (of the first dimension) that a sample keeps."""
        return slice(None, None, self.stride) if self.stride else slice(self.rows)


FULL = Level("full")
SAMPLE = Level("sample", rows=DEFAULT_SAMPLE_ROWS)
STATS = Level("stats")
HASH = Level("hash")


@dataclass(frozen=True)
class LevelRules:
    """Rules in order; immutable."""

    text: str
    rules: tuple[tuple[Level, Expression | None], ...]

    @classmethod
    def parse(cls, text: str) -> LevelRules:
        """Raises ValueError (ExpressionError for the condition of a rule) that quotes the part it cannot read."""
        rules = []
        for part in _split(text):
            level, separator, condition = part.partition(" if ")
            rules.append((Level.parse(level), Expression(condition, kind="condition") if separator else None))
        return cls(text, tuple(rules))

    def choose(self, names: Mapping[str, Any]) -> Level:
        """The level of a record with these names (as for a filter)."""
        for level, condition in self.rules:
            if condition is None or condition.holds(names):
                return level
        return FULL


def _split(text: str) -> list[str]:
    """The rules of a text: its parts between semicolons that stand outside quotes."""
    parts = [part.strip() for part in re.findall(r"""(?:[^;"']|"[^"]*"|'[^']*'|["'])+""", text)]
    return [part for part in parts if part]

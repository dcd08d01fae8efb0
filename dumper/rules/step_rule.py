"""Which steps to record: ``10-20``, ``first 5``, ``every 10``, ``40-``, joined by commas."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"(?P<first>\d+)\s*(?:(?P<dash>-)\s*(?P<last>\d+)?)?")
_FIRST = re.compile(r"first\s+(?P<count>\d+)")
_EVERY = re.compile(r"every\s+(?P<stride>\d+)(?:\s+from\s+(?P<offset>\d+))?")
_HELP = "write 10, 10-20, 10-, first 5, every 10 or every 10 from 3, joined by commas"


@dataclass(frozen=True)
class _Term:
    """The steps ``first``, ``first + stride``, … up to and including ``last`` (None: for ever)."""

    first: int
    last: int | None
    stride: int = 1

    def wants(self, step: int) -> bool:
        inside = step >= self.first and (self.last is None or step <= self.last)
        return inside and (step - self.first) % self.stride == 0


@dataclass(frozen=True)
class StepRule:
    """The steps to record. Steps count from 0, bounds are included."""

    text: str
    terms: tuple[_Term, ...]

    @classmethod
    def parse(cls, text: str) -> StepRule:
        """Raises ValueError that quotes the part it cannot read. ``all`` and the empty text mean every step."""
        if text.strip() in ("", "all"):
            return cls("all", (_Term(0, None),))
        return cls(text.strip(), tuple(_term(part.strip(), text) for part in text.split(",")))

    def wants(self, step: int) -> bool:
        return any(term.wants(step) for term in self.terms)

    def __str__(self) -> str:
        return self.text


def _term(part: str, text: str) -> _Term:
    if found := _RANGE.fullmatch(part):
        first = int(found["first"])
        last = first if found["dash"] is None else None if found["last"] is None else int(found["last"])
        if last is not None and last < first:
            raise ValueError(f"steps {text!r}: the range {part!r} ends before it begins")
        return _Term(first, last)
    if found := _FIRST.fullmatch(part):
        count = int(found["count"])
        if count == 0:
            raise ValueError(f"steps {text!r}: {part!r} records nothing; to record nothing switch recording off")
        return _Term(0, count - 1)
    if found := _EVERY.fullmatch(part):
        stride = int(found["stride"])
        if stride == 0:
            raise ValueError(f"steps {text!r}: {part!r} has a stride of 0")
        return _Term(int(found["offset"] or 0), None, stride)
    raise ValueError(f"steps {text!r}: cannot read {part!r}; {_HELP}")

"""The taps of a module, as generated code and ``install_taps`` know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from patcher.plan.edits import Dump, Edit


@dataclass
class Tap:
    """One entry of ``install_taps``; see docs/contracts.md, contract 1."""

    id: str
    name: str
    kind: Literal["dump", "step", "tags"]
    target: str
    file: str
    line: int
    level: str | None = None
    grad: bool = False
    inputs: tuple[str, ...] = ()
    operation: str | None = None

    def as_dict(self) -> dict[str, str | int | bool | tuple[str, ...] | None]:
        """The plain dict that the dumper is given."""
        return {
            "id": self.id,
            "name": self.name,
            "kind": self.kind,
            "target": self.target,
            "file": self.file,
            "line": self.line,
            "level": self.level,
            "grad": self.grad,
            "inputs": self.inputs,
            "operation": self.operation,
        }


class TapTable:
    """The taps of one module, numbered in the order in which edits make them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.taps: list[Tap] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def add(self, tap: Tap) -> int:
        """Number of the tap; places of one edit that record under one name share a tap."""
        number = self._numbers.setdefault((tap.id, tap.kind), len(self.taps))
        if number == len(self.taps):
            self.taps.append(tap)
        return number

    def forget(self, count: int) -> None:
        """Keep the first ``count`` taps only: those after them belong to an edit that does not land."""
        for tap in self.taps[count:]:
            del self._numbers[tap.id, tap.kind]
        del self.taps[count:]


@dataclass(frozen=True)
class TargetEdit:
    """An edit on its way into a target."""

    edit: Edit
    target: str
    taps: TapTable

    @property
    def owner(self) -> str:
        """The edit, for messages: ``target#number``."""
        return f"{self.target}#{self.edit.number}"

    def at(self, line: int, captures: Mapping[str, str]) -> InsertionPoint:
        """One of its places."""
        return InsertionPoint(self, line, captures)


@dataclass(frozen=True)
class InsertionPoint:
    """What generated code needs to know of the place where it goes."""

    what: TargetEdit
    line: int
    captures: Mapping[str, str]

    @property
    def edit(self) -> Edit:
        """The edit that puts code there."""
        return self.what.edit

    @property
    def owner(self) -> str:
        """The edit, for messages: ``target#number``."""
        return self.what.owner

    def tap(self, name: str, kind: Literal["dump", "step", "tags"] = "dump", **settings: Any) -> int:
        """Number of this edit's tap of that name; ``settings`` are the other fields of ``Tap``."""
        taps, target = self.what.taps, self.what.target
        return taps.add(Tap(f"{self.owner}:{name}", name, kind, target, taps.file, self.line, **settings))

    def tap_of(self, dump: Dump) -> int:
        """Number of the tap of a short form."""
        return self.tap(dump.name, level=dump.level, grad=dump.grad, inputs=dump.inputs, operation=dump.operation)

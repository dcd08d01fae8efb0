"""From which other taps the value of a tap is computed, and by what: the keys ``inputs`` and ``operation``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OPERATIONS = ("attention", "recurrence", "linear", "sum", "norm", "mlp", "moe", "router", "logits")
_INPUT = re.compile(r"(?P<name>[^@]+?)(?:@(?:-(?P<back>[1-9][0-9]*)|(?P<last>last)))?")


@dataclass(frozen=True)
class TapInput:
    """A tap that another one is computed from."""

    name: str
    layers_back: int = 0
    """How many layers before: its tag ``layer_id`` is that much less."""
    last_layer: bool = False
    """Of the layer with the highest ``layer_id``."""


def parse_input(text: str) -> TapInput:
    """Read ``NAME``, ``NAME@-1`` or ``NAME@last``. Raises ValueError for anything else."""
    found = _INPUT.fullmatch(text)
    if found is None or not text.strip():
        raise ValueError(
            f"{text!r} names no tap: write NAME, NAME@-1 for the layer before, or NAME@last for the last layer"
        )
    return TapInput(found["name"], int(found["back"] or 0), found["last"] is not None)


def check_operation(name: str) -> None:
    """Raise ValueError, with the known ones, when there is no operation of that name."""
    if name not in OPERATIONS:
        near = difflib.get_close_matches(name, OPERATIONS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"there is no operation {name!r}{hint} (known: {', '.join(OPERATIONS)})")


def find_cycle(inputs: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of taps that are computed from each other in one layer, the first of them again at the end; else empty."""
    graph = {
        name: [one.name for one in map(parse_input, texts) if not one.layers_back] for name, texts in inputs.items()
    }
    finished: set[str] = set()
    for start in graph:
        cycle = _cycle_from(start, graph, finished)
        if cycle:
            return cycle
    return []


def _cycle_from(start: str, graph: Mapping[str, Sequence[str]], finished: set[str]) -> list[str]:
    path = [start]
    todo = [iter(graph[start])]
    while todo:
        name = next(todo[-1], None)
        if name is None:
            finished.add(path.pop())
            todo.pop()
        elif name in path:
            return [*path[path.index(name) :], name]
        elif name in graph and name not in finished:
            path.append(name)
            todo.append(iter(graph[name]))
    return []

"""What a ``dump.json`` of msprobe lists: one entry for each call of a module or function, with the values of the call.

The format is described in msprobe's documentation (``docs/en/dump``, "dump.json file description"). A module is
``Module.PATH.CLASS.forward.CALL``, a function ``Functional.NAME.CALL.forward``; ``backward`` holds the gradients of
the same outputs (as ``input``) and inputs (as ``output``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_PARAMETER = "param"
_STATISTICS = {"Min": "min", "Max": "max", "Mean": "mean", "Norm": "l2"}
"""Its words and ours."""


@dataclass(frozen=True)
class Entry:
    """One value, under the name that ``dumper.attach`` and ``dump_model`` would give it."""

    name: str
    stream: str
    """``value`` or ``grad``."""
    described: Mapping[str, Any]
    """``type``, ``dtype``, ``shape``, ``Max``, …, ``data_name``."""

    @property
    def dtype(self) -> str | None:
        """torch's name without ``torch.``; MindSpore's are the same in capitals. None for what is no tensor."""
        dtype = self.described.get("dtype")
        return dtype.rpartition(".")[2].lower() if isinstance(dtype, str) else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of a tensor."""
        shape = self.described.get("shape")
        if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
            return None
        return tuple(shape)

    @property
    def data_name(self) -> str | None:
        """The file of the tensor; None where only statistics were kept."""
        name = self.described.get("data_name")
        # In the folder of the tensors and nowhere else.
        plain = isinstance(name, str) and "/" not in name and "\0" not in name and name not in ("", "-1", ".", "..")
        return name if plain else None

    @property
    def statistics(self) -> dict[str, float]:
        """Those of ours that it has."""
        found = {}
        for theirs, ours in _STATISTICS.items():
            number = self.described.get(theirs)
            if isinstance(number, int | float) and not isinstance(number, bool):
                found[ours] = float(number)
            elif number in ("nan", "NaN"):
                found[ours] = math.nan
        return found


def entries(data: Mapping[str, Any]) -> Iterator[Entry]:
    """The values of all calls, in order."""
    for call, values in data.items():
        if isinstance(values, Mapping):
            yield from _of_call(call, values)


def _of_call(call: str, values: Mapping[str, Any]) -> Iterator[Entry]:
    words = call.split(".")
    name = _owner(words)
    if words[-1] == "parameters_grad":
        for key, value in values.items():
            for listed in value if isinstance(value, list) else [value]:
                yield from _values(f"{_PARAMETER}.{name}.{key}", "grad", listed)
        return
    backward = "backward" in words[-2:]
    stream = "grad" if backward else "value"
    outputs, inputs = ("input", "output") if backward else ("output", "input_args")
    yield from _arguments(f"{name}.input", stream, values.get(inputs))
    yield from _values(f"{name}.input", stream, values.get("input_kwargs"))
    given = values.get(outputs)
    if isinstance(given, list) and len(given) == 1:
        yield from _values(name, stream, given[0])
    else:
        yield from _arguments(name, stream, given)
    parameters = values.get("parameters")
    if isinstance(parameters, Mapping):
        for key, value in parameters.items():
            yield from _values(f"{_PARAMETER}.{name}.{key}", "value", value)


def _owner(words: list[str]) -> str:
    """The path of a module, or the kind and name of a function."""
    if words[0] in ("Module", "Cell"):
        # Before the class: NAME.CLASS.forward.0, NAME.CLASS.parameters_grad
        end = next((at for at, word in enumerate(words) if word in ("forward", "backward", "parameters_grad")), None)
        return ".".join(words[1 : None if end is None else end - 1]) or ".".join(words)
    # Functional.relu.0.forward
    return ".".join(words[:-2]) if len(words) > 2 else ".".join(words)


def _arguments(name: str, stream: str, given: Any) -> Iterator[Entry]:
    if isinstance(given, list):
        for number, value in enumerate(given):
            yield from _values(f"{name}.{number}", stream, value)
    else:
        yield from _values(name, stream, given)


def _values(name: str, stream: str, value: Any) -> Iterator[Entry]:
    """A described value; lists and maps of them by number and key."""
    if isinstance(value, Mapping):
        if "type" in value and not isinstance(value["type"], Mapping):
            yield Entry(name, stream, value)
        else:
            for key, inner in value.items():
                yield from _values(f"{name}.{key}", stream, inner)
    elif isinstance(value, list):
        yield from _arguments(name, stream, value)

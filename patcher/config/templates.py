"""What a config says once for many of its taps: ``defaults``, and ``${NAME}`` for its parameters.

Both work on the data of a file before it is validated, and keep the line of every value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from patcher.config.yaml_source import Path, YamlDocument
from patcher.errors import ConfigError

_REFERENCE = re.compile(r"\$\{(\w+)\}")
_TAPS = ("dump", "before", "after", "wrap")


def with_parameters(document: YamlDocument, arguments: Mapping[str, Any]) -> YamlDocument:
    """The document with the values of its parameters in the place of ``${NAME}``.

    A value that is nothing but ``${NAME}`` becomes what the parameter is, be it text, a number, a list or a mapping.
    Raises ConfigError for a parameter without a value, and for an argument or a name that is no parameter.
    """
    parameters = document.data.get("parameters") or {}
    if not isinstance(parameters, dict):
        return document  # the validation says so
    unknown = [name for name in arguments if name not in parameters]
    if unknown:
        known = ", ".join(map(repr, parameters)) or "none"
        raise ConfigError(f"{document.path} has no parameter {unknown[0]!r} (its parameters: {known})")
    values = {**parameters, **arguments}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise ConfigError(
            f"{document.origin('parameters', missing[0])}: the parameter {missing[0]!r} has no value; "
            "another config that extends this one gives it with 'with'"
        )
    if not parameters:
        return document
    data = {
        key: value if key == "parameters" else _substituted(value, values, document, (key,))
        for key, value in document.data.items()
    }
    return replace(document, data=data)


def _substituted(value: Any, values: Mapping[str, Any], document: YamlDocument, where: Path) -> Any:
    if isinstance(value, dict):
        return {key: _substituted(inner, values, document, (*where, str(key))) for key, inner in value.items()}
    if isinstance(value, list):
        return [_substituted(inner, values, document, (*where, number)) for number, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    for name in _REFERENCE.findall(value):
        if name not in values:
            known = ", ".join(map(repr, values))
            raise ConfigError(f"{document.origin(*where)}: there is no parameter {name!r} (there are: {known})")
    whole = _REFERENCE.fullmatch(value)
    if whole is not None:
        return values[whole[1]]
    return _REFERENCE.sub(lambda found: str(values[found[1]]), value)


def with_defaults(document: YamlDocument) -> YamlDocument:
    """The document with the defaults of the file and of each patch written out in every short form.

    The document is valid otherwise. What a short form says itself wins, then what its patch says.
    """
    data = document.data
    lines = dict(document.lines)
    file_defaults = data.get("defaults") or {}
    patches: list[Any] = []
    for number, patch in enumerate(data.get("patches") or []):
        defaults = {**file_defaults, **(patch.get("defaults") or {})}
        edits: list[Any] = []
        for position, edit in enumerate(patch.get("edits") or []):
            changed = dict(edit)
            for key, dump in _short_forms(edit):
                where = ("patches", number, "edits", position, key)
                for name in defaults.keys() - dump.keys():
                    own = name in (patch.get("defaults") or {})
                    source = (*(("patches", number) if own else ()), "defaults", name)
                    lines[(*where, name)] = document.origin(*source).line
                changed[key] = {**defaults, **dump}
            edits.append(changed)
        patches.append({**patch, **({"edits": edits} if "edits" in patch else {})})
    return replace(document, data={**data, **({"patches": patches} if "patches" in data else {})}, lines=lines)


def _short_forms(edit: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in _TAPS:
        if isinstance(edit.get(key), dict):
            yield key, edit[key]

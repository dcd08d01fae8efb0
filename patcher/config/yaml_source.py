"""YAML with line numbers: a patch config's data, and where in the file each value was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from patcher.errors import ConfigError

Path = tuple[str | int, ...]
_MAX_VALUES = 100_000


@dataclass(frozen=True)
class Origin:
    """Where in a patch config a value stands: file and 1-based line."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class YamlDocument:
    """Plain data of one YAML document and the line of every key and value in it."""

    path: str
    text: str
    data: Any
    lines: dict[Path, int]
    """1-based line per value; for a block scalar (``|``, ``>``) the line of its first content line."""

    def origin(self, *path: str | int) -> Origin:
        """Where the value at ``path`` was written, or its nearest enclosing value."""
        for length in range(len(path), -1, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return Origin(self.path, line)
        return Origin(self.path, 1)


def load_yaml(text: str, path: str) -> YamlDocument:
    """Parse ``text``; raises ConfigError with file and line for a syntax error or a key given twice."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Path, int] = {(): 1}
            if node is not None:
                _collect(node, (), lines, path, ())
            data = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(_describe(error, path)) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    return YamlDocument(path, text, data, lines)


def _collect(node: yaml.Node, where: Path, lines: dict[Path, int], path: str, enclosing: tuple[yaml.Node, ...]) -> None:
    line = node.start_mark.line + 1
    if any(node is outer for outer in enclosing) or len(lines) > _MAX_VALUES:
        raise ConfigError(f"{path}:{line}: the value refers to itself, or is far too large for a config")
    lines[where] = line
    inside = (*enclosing, node)
    if isinstance(node, yaml.ScalarNode):
        if node.style in ("|", ">"):
            lines[where] += 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect(item, (*where, index), lines, path, inside)
    elif isinstance(node, yaml.MappingNode):
        _collect_mapping(node, where, lines, path, inside)


def _collect_mapping(
    node: yaml.MappingNode, where: Path, lines: dict[Path, int], path: str, inside: tuple[yaml.Node, ...]
) -> None:
    seen: dict[str, int] = {}
    for key, value in node.value:
        name = str(key.value)
        line = key.start_mark.line + 1
        if name in seen:
            raise ConfigError(
                f"{path}:{line}: the key {name!r} is given twice (first in line {seen[name]}); "
                "YAML would silently keep only the second"
            )
        seen[name] = line
        _collect(value, (*where, name), lines, path, inside)


def _describe(error: yaml.YAMLError, path: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f"{path}: not valid YAML: {problem}"
    snippet = mark.get_snippet(indent=2) if mark.buffer else None
    return f"{path}:{mark.line + 1}:{mark.column + 1}: not valid YAML: {problem}" + (f"\n{snippet}" if snippet else "")

"""What the names at the top level of a module stand for."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field

from patcher.source.definitions import statements_in


@dataclass(frozen=True)
class TopLevel:
    """Everything that gives a name to something, by name, in source order."""

    defined: frozenset[str]
    """Functions and classes."""
    imported: dict[str, list[tuple[ast.Import | ast.ImportFrom, ast.alias]]] = field(default_factory=dict)
    stars: list[ast.ImportFrom] = field(default_factory=list)
    assigned: dict[str, ast.expr] = field(default_factory=dict)
    """The value of the first assignment to the name alone."""

    @classmethod
    def of(cls, body: Sequence[ast.stmt]) -> TopLevel:
        """The names of a module's body."""
        defined: set[str] = set()
        found = cls(frozenset())
        for node in statements_in(body):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                found._add_import(node)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        found.assigned.setdefault(target.id, node.value)
        return cls(frozenset(defined), found.imported, found.stars, found.assigned)

    def _add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                assert isinstance(node, ast.ImportFrom)
                self.stars.append(node)
                continue
            name = alias.asname or (alias.name.split(".")[0] if isinstance(node, ast.Import) else alias.name)
            self.imported.setdefault(name, []).append((node, alias))

"""Checks of inserted code before it runs: names that nothing in reach defines (misspelt, or gone in this release), and
functions that it would turn into generators, whose calls run nothing."""

from __future__ import annotations

import ast
import builtins
import difflib
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from patcher.generated_names import DUMPER_NAME
from patcher.match.function_text import FunctionBuffer
from patcher.match.pattern import names_in, to_python
from patcher.plan.edits import Code, Edit, FunctionPatch
from patcher.source.definitions import Definition, all_statements, statements_in

_ALWAYS = frozenset((*dir(builtins), DUMPER_NAME, "__class__", "__file__", "__name__", "__spec__"))


PREAMBLE = 0
"""What stands for the preambles of a function among the numbers of its edits."""


class NameChecker:
    """Knows the names of one module."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._module: frozenset[str] | None = None

    def unknown(self, patch: FunctionPatch, definitions: Sequence[Definition]) -> dict[int, tuple[str, ...]]:
        """Per edit number (``PREAMBLE`` for preambles), a message for each name that its code uses and nothing in reach
        defines, unless the edit allows it."""
        texts = {edit.number: list(_codes(edit)) for edit in patch.edits}
        texts[PREAMBLE] = list(patch.preambles)
        allowed = {edit.number: frozenset(edit.undefined) for edit in patch.edits}
        allowed[PREAMBLE] = frozenset(patch.undefined)
        trees = {number: [tree for code in codes if (tree := _parsed(code))] for number, codes in texts.items()}
        inserted = [tree for found in trees.values() for tree in found]
        known = {*_ALWAYS, *_bound(inserted), *_bound([found.unit for found in definitions])}
        # Lines that are no Python by themselves may bind any of their names.
        known.update(*(names_in(code.text) for codes in texts.values() for code in codes if _parsed(code) is None))
        messages: dict[int, tuple[str, ...]] = {}
        for number, found in trees.items():
            unknown = _used(found) - known - self._module_names() - allowed[number]
            if unknown and not self._star_import() and "*" not in allowed[number]:
                near = sorted(known | self._module_names())
                messages[number] = tuple(_message(name, patch, near) for name in sorted(unknown))
        return messages

    def _module_names(self) -> frozenset[str]:
        if self._module is None:
            names: set[str] = set()
            for node in statements_in(self._tree.body):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    names.add(node.name)
                else:
                    names |= _bound([node])
            declared = [node for node in all_statements(self._tree.body) if isinstance(node, ast.Global)]
            self._module = frozenset(names.union(*(node.names for node in declared)))
        return self._module

    def _star_import(self) -> bool:
        return "*" in self._module_names()


def _codes(edit: Edit) -> Iterator[Code]:
    if isinstance(edit.content, Code):
        yield edit.content
    else:
        yield from edit.content.expressions()


def _parsed(code: Code) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(to_python(code.text)).strip())
    except (SyntaxError, ValueError):
        return None  # reported where the code is inserted


def _used(trees: Iterable[ast.AST]) -> set[str]:
    return {
        node.id
        for tree in trees
        for node in _always_evaluated(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and not node.id.startswith("__tensortap_")
    }


def _always_evaluated(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that are evaluated whenever the code runs: a branch may be meant for another release."""
    yield tree
    for name, value in ast.iter_fields(tree):
        if name in _CONDITIONAL.get(type(tree), ()):
            continue
        children = value if isinstance(value, list) else [value]
        for child in children[:1] if isinstance(tree, ast.BoolOp) else children:
            if isinstance(child, ast.AST):
                yield from _always_evaluated(child)


_BODIES = ("body", "orelse", "handlers", "finalbody", "elt", "key", "value", "generators")
_CONDITIONAL: dict[type[ast.AST], Sequence[str]] = dict.fromkeys(
    (
        ast.IfExp, ast.Lambda, ast.If, ast.While, ast.For, ast.AsyncFor, ast.Try, ast.FunctionDef, ast.AsyncFunctionDef,
        ast.ClassDef, ast.Match, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
    ),
    _BODIES,
)  # fmt: skip


def _bound(trees: Iterable[ast.AST]) -> set[str]:
    names: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, _NAMED):
                names.add(node.name or "")
    return names


_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)


def _message(name: str, patch: FunctionPatch, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"nothing in reach of {patch.target} is called {name!r}{hint}"


Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def made_generator(buffer: FunctionBuffer, unit: Function) -> tuple[str, str]:
    """The edit that puts a ``yield`` into ``unit``, or into a function in it, which has none in the file, and why that
    is wrong; two empty strings where there is none. The buffer is Python."""
    if not any("yield" in line.text for line in buffer.lines if line.owner):
        return "", ""
    before = _yields(unit)
    indented = buffer.lines[0].text[:1].isspace()
    tree = ast.parse("if 1:\n" + buffer.text if indented else buffer.text)
    statements = tree.body[0].body if isinstance(tree.body[0], ast.If) else tree.body
    for statement in statements:
        for path, number in _yields(statement).items() if isinstance(statement, Function) else ():
            line = buffer.lines[(number or 1) - (2 if indented else 1)]
            if number and before.get(path, number) is None and line.owner:
                return line.owner, f"'yield' would make a generator of the function: {line.text.strip()!r}"
    return "", ""


def _yields(function: Function, inside: str = "") -> dict[str, int | None]:
    """By name, a function and those in it: the first line that yields, None where none does."""
    path = f"{inside}.{function.name}"
    found: dict[str, int | None] = {path: None}
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Function):
            found |= _yields(node, path)
        elif isinstance(node, (ast.Yield, ast.YieldFrom)):
            found[path] = min(found[path] or node.lineno, node.lineno)
        elif not isinstance(node, _SCOPES):
            waiting.extend(ast.iter_child_nodes(node))
    return found

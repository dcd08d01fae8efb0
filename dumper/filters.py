"""Filters: a small expression language over the name and tags of a record.

``layer_id in [0, 1] and name.startswith("attn")``; ``search("mlp|attn", name)``; ``rank == 0``. Parsed once with
``ast`` into closures, against a whitelist; nothing is evaluated as Python code.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

Names = Mapping[str, Any]
Evaluate = Callable[[Names], Any]

LONGEST_FILTER = 10_000
"""Characters."""
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, container: value in container,
    ast.NotIn: lambda value, container: value not in container,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
    ast.Mult: operator.mul,
}
_METHODS = ("startswith", "endswith", "lower", "upper", "strip")
_FUNCTIONS: dict[str, Callable[[str, Any], bool]] = {
    "search": lambda pattern, text: re.search(pattern, str(text)) is not None,
    "fullmatch": lambda pattern, text: re.fullmatch(pattern, str(text)) is not None,
}


class FilterError(ValueError):
    """A filter that cannot be read; the message quotes it and says what is wrong."""


class Filter:
    """A parsed filter. A tag that a record does not have is None; comparing the incomparable is false.

    ``names`` are the names that it looks at.
    """

    def __init__(self, text: str) -> None:
        """Raises FilterError."""
        self.text = text
        self._evaluate, self.names = _parse(text)

    def __call__(self, names: Names) -> bool:
        """Whether a record with these names (``name``, ``rank`` and its tags) passes."""
        return _true(self._evaluate, names)

    def __repr__(self) -> str:
        return f"Filter({self.text!r})"


def _parse(text: str) -> tuple[Evaluate, frozenset[str]]:
    if len(text) > LONGEST_FILTER:
        raise FilterError(f"the filter is {len(text)} characters long; {LONGEST_FILTER} is the most")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise FilterError(f"the filter {text!r} is not an expression: {message}") from error
    try:
        evaluate = _Compiler(text).compile(tree.body)
    except RecursionError as error:
        raise FilterError(f"the filter {text[:60]!r}… is nested too deep") from error
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called)
    return evaluate, frozenset(names)


class _Compiler:
    def __init__(self, text: str) -> None:
        self._text = text

    def compile(self, node: ast.expr) -> Evaluate:
        handler: Callable[[Any], Evaluate] | None = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is None:
            raise self._refuse(
                node,
                "allowed are names, literals, comparisons, and/or/not, + - * // %, search(), "
                "fullmatch(), .startswith() and .endswith()",
            )
        return handler(node)

    def _refuse(self, node: ast.AST, hint: str) -> FilterError:
        part = ast.get_source_segment(self._text.strip(), node) or type(node).__name__
        return FilterError(f"the filter {self._text!r} has {part!r}, which a filter cannot say; {hint}")

    def _constant(self, node: ast.Constant) -> Evaluate:
        value = node.value
        return lambda names: value

    def _name(self, node: ast.Name) -> Evaluate:
        name = node.id
        return lambda names: names.get(name)

    def _list(self, node: ast.List | ast.Tuple | ast.Set) -> Evaluate:
        parts = [self.compile(element) for element in node.elts]
        return lambda names: [part(names) for part in parts]

    _tuple = _set = _list

    def _boolop(self, node: ast.BoolOp) -> Evaluate:
        parts = [self.compile(value) for value in node.values]
        if isinstance(node.op, ast.And):
            return lambda names: all(_true(part, names) for part in parts)
        return lambda names: any(_true(part, names) for part in parts)

    def _unaryop(self, node: ast.UnaryOp) -> Evaluate:
        operand = self.compile(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda names: not _true(operand, names)
        if isinstance(node.op, ast.USub):
            return lambda names: -operand(names)
        raise self._refuse(node, "allowed are not and -")

    def _binop(self, node: ast.BinOp) -> Evaluate:
        operation = _ARITHMETIC.get(type(node.op))
        if operation is None:
            raise self._refuse(node, "allowed are + - * // %")
        left, right = self.compile(node.left), self.compile(node.right)

        def calculate(names: Names) -> Any:
            a, b = left(names), right(names)
            # Strings and sequences could be made to grow without bound.
            if not (isinstance(a, int | float) and isinstance(b, int | float)):
                raise TypeError
            return operation(a, b)

        return calculate

    def _compare(self, node: ast.Compare) -> Evaluate:
        operands = [self.compile(operand) for operand in (node.left, *node.comparators)]
        operations = [_COMPARISONS[type(operation)] for operation in node.ops]

        def compare(names: Names) -> bool:
            values = [operand(names) for operand in operands]
            try:
                return all(op(a, b) for op, a, b in zip(operations, values, values[1:], strict=False))
            except TypeError:
                return False

        return compare

    def _call(self, node: ast.Call) -> Evaluate:
        if node.keywords:
            raise self._refuse(node, "functions take no keywords here")
        arguments = [self.compile(argument) for argument in node.args]
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            return self._method(node.func.attr, self.compile(node.func.value), arguments)
        if isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            self._check_pattern(node)
            function = _FUNCTIONS[node.func.id]
            return lambda names: function(*(argument(names) for argument in arguments))
        raise self._refuse(node, f"allowed are {', '.join(_FUNCTIONS)} and the methods {', '.join(_METHODS)}")

    def _check_pattern(self, node: ast.Call) -> None:
        if len(node.args) != 2 or not isinstance(node.args[0], ast.Constant) or not isinstance(node.args[0].value, str):
            raise self._refuse(node, 'write it as search("regular expression", name)')
        try:
            re.compile(node.args[0].value)
        except re.error as error:
            raise self._refuse(node, f"the regular expression is wrong: {error}") from error

    @staticmethod
    def _method(name: str, owner: Evaluate, arguments: list[Evaluate]) -> Evaluate:
        def call(names: Names) -> Any:
            text = owner(names)
            if not isinstance(text, str):
                return False
            values = [tuple(v) if isinstance(v, list) else v for v in (argument(names) for argument in arguments)]
            return getattr(text, name)(*values)

        return call


def _true(part: Evaluate, names: Names) -> bool:
    try:
        return bool(part(names))
    except (TypeError, AttributeError, ValueError, ZeroDivisionError, OverflowError):
        return False

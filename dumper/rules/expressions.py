"""Expressions over named values: filters of records, conditions of level rules, pass criteria of the comparator.

``layer_id in [0, 1] and name.startswith("attn")``; ``search("mlp|attn", name)``; ``rel <= 0.01 or max_abs <= 1e-3``.
The syntax is Python's. An expression is parsed once, with ``ast``, into closures against a whitelist; nothing is
evaluated as Python code, and no expression takes longer than its own length and that of the values allow.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

Values = Mapping[str, Any]
_Evaluate = Callable[[Values], Any]

LONGEST_EXPRESSION = 10_000
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
_ORDER = frozenset({ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE})
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_METHODS = ("startswith", "endswith", "lower", "upper", "strip")
_FUNCTIONS = ("search", "match", "fullmatch")
_NOT_OF_NUMBERS = (ast.List, ast.Tuple, ast.Set, ast.Call, ast.Subscript, ast.IfExp)
_OF_NUMBERS = "allowed are numbers, comparisons, and, or, not, + - * / // %"
_OF_ALL = (
    "allowed are names, literals, lists, x[0], x[1:3], comparisons, in, and, or, not, x if y else z, + - * / // %, "
    "search(), match(), fullmatch(), .startswith(), .endswith(), .lower(), .upper() and .strip()"
)


class ExpressionError(ValueError):
    """An expression that cannot be read; the message quotes it and says what is wrong."""


class Expression:
    """A parsed expression.

    A name without a value is None. A part that cannot be evaluated (the incomparable compared, a division by zero) is
    false, and so is a comparison with NaN.
    """

    def __init__(
        self, text: str, *, kind: str = "filter", names: Collection[str] | None = None, numbers: bool = False
    ) -> None:
        """``kind``: what the expression is, for messages. ``names``: those that it may use, None for any.
        ``numbers``: refuse text, lists and functions, since all values are numbers.

        Raises ExpressionError.
        """
        self.text = text
        self._evaluate, self.names = _parse(text, _Compiler(text, kind, names, numbers))
        """``names``: the names that it looks at."""

    def holds(self, values: Values) -> bool:
        """Whether the expression is true of these values."""
        return _true(self._evaluate, values)

    def value(self, values: Values) -> Any:
        """What the expression stands for; None where it cannot be computed."""
        try:
            return self._evaluate(values)
        except Exception:  # the incomparable compared, a division by zero
            return None

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


class Pattern:
    """A regular expression that takes time linear in the text. What UTF-8 does not have, as in the name of a file that
    is not UTF-8, is read as a question mark."""

    __slots__ = ("_compiled",)

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def search(self, text: str) -> Any:
        """The first match anywhere in the text, with the methods of ``re.Match``, or None."""
        return self._compiled.search(_as_utf8(text))

    def match(self, text: str) -> Any:
        """The match at the beginning of the text, or None."""
        return self._compiled.match(_as_utf8(text))

    def fullmatch(self, text: str) -> Any:
        """The match of the whole text, or None."""
        return self._compiled.fullmatch(_as_utf8(text))


def _as_utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def compile_pattern(pattern: str) -> Pattern:
    """A regular expression in RE2's syntax.

    Patterns come from people and run in the recorded process: one that backtracks without end would hang it. Raises
    ExpressionError; references back and look-around are not in RE2 (https://github.com/google/re2/wiki/Syntax).
    """
    try:
        import re2
    except ImportError:
        raise ExpressionError(
            "a regular expression needs the package google-re2, which is not installed; pip install google-re2, or "
            "write it with in, .startswith() and .endswith()"
        ) from None
    options = re2.Options()
    options.log_errors = False
    try:
        return Pattern(re2.compile(pattern, options))
    except UnicodeEncodeError:
        raise ExpressionError(
            "the regular expression has characters that UTF-8 does not have; write . for them"
        ) from None
    except re2.error as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason
        raise ExpressionError(
            f"the regular expression is wrong: {reason} (the syntax is RE2's: without references back and look-around)"
        ) from None


def _parse(text: str, compiler: _Compiler) -> tuple[_Evaluate, frozenset[str]]:
    if len(text) > LONGEST_EXPRESSION:
        raise ExpressionError(f"the {compiler.kind} is {len(text)} characters long; {LONGEST_EXPRESSION} is the most")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ExpressionError(f"the {compiler.kind} {text!r} is not an expression: {message}") from error
    try:
        evaluate = compiler.compile(tree.body)
    except RecursionError as error:
        raise ExpressionError(f"the {compiler.kind} {text[:60]!r}… is nested too deep") from error
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called)
    return evaluate, frozenset(names)


def _comparison(operation: Callable[[Any, Any], Any], left: _Evaluate, right: _Evaluate) -> _Evaluate:
    """Two operands, as in nearly every criterion and filter."""

    def compare(values: Values) -> bool:
        one, other = left(values), right(values)
        try:
            return bool(operation(one, other))
        except TypeError:
            return False

    return compare


class _Compiler:
    def __init__(self, text: str, kind: str, names: Collection[str] | None, numbers: bool) -> None:
        self.kind = kind
        self._text = text
        self._names = names
        self._numbers = numbers

    def compile(self, node: ast.expr) -> _Evaluate:
        handler: Callable[[Any], _Evaluate] | None = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is None or (self._numbers and isinstance(node, _NOT_OF_NUMBERS)):
            raise self._refuse(node)
        return handler(node)

    def _refuse(self, node: ast.AST, hint: str | None = None) -> ExpressionError:
        part = ast.get_source_segment(self._text.strip(), node) or type(node).__name__
        if hint is None:
            named = f"; names are {', '.join(self._names)}" if self._names is not None else ""
            hint = (_OF_NUMBERS if self._numbers else _OF_ALL) + named
        return ExpressionError(f"the {self.kind} {self._text!r} has {part!r}, which a {self.kind} cannot say; {hint}")

    def _constant(self, node: ast.Constant) -> _Evaluate:
        value = node.value
        if self._numbers and not isinstance(value, int | float):
            raise self._refuse(node)
        return lambda values: value

    def _name(self, node: ast.Name) -> _Evaluate:
        name = node.id
        if self._names is not None and name not in self._names:
            raise self._refuse(node)
        return lambda values: values.get(name)

    def _list(self, node: ast.List | ast.Tuple | ast.Set) -> _Evaluate:
        parts = [self.compile(element) for element in node.elts]
        return lambda values: [part(values) for part in parts]

    _tuple = _set = _list

    def _boolop(self, node: ast.BoolOp) -> _Evaluate:
        parts = [self.compile(value) for value in node.values]
        if isinstance(node.op, ast.And):
            return lambda values: all(_true(part, values) for part in parts)
        return lambda values: any(_true(part, values) for part in parts)

    def _unaryop(self, node: ast.UnaryOp) -> _Evaluate:
        operand = self.compile(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda values: not _true(operand, values)
        if isinstance(node.op, ast.USub):
            return lambda values: -operand(values)
        if isinstance(node.op, ast.UAdd):
            return lambda values: +operand(values)
        raise self._refuse(node, "allowed are not, - and +")

    def _binop(self, node: ast.BinOp) -> _Evaluate:
        operation = _ARITHMETIC.get(type(node.op))
        if operation is None:
            raise self._refuse(node, "allowed are + - * / // %")
        left, right = self.compile(node.left), self.compile(node.right)

        def calculate(values: Values) -> Any:
            a, b = left(values), right(values)
            # Strings and sequences could be made to grow without bound.
            if not (isinstance(a, int | float) and isinstance(b, int | float)):
                raise TypeError
            return operation(a, b)

        return calculate

    def _ifexp(self, node: ast.IfExp) -> _Evaluate:
        condition, first, second = self.compile(node.test), self.compile(node.body), self.compile(node.orelse)
        return lambda values: first(values) if _true(condition, values) else second(values)

    def _subscript(self, node: ast.Subscript) -> _Evaluate:
        owner = self.compile(node.value)
        if not isinstance(node.slice, ast.Slice):
            index = self.compile(node.slice)
            return lambda values: owner(values)[index(values)]
        parts = node.slice.lower, node.slice.upper, node.slice.step
        bounds = [None if part is None else self.compile(part) for part in parts]
        return lambda values: owner(values)[slice(*(bound and bound(values) for bound in bounds))]

    def _compare(self, node: ast.Compare) -> _Evaluate:
        if self._numbers and not all(type(operation) in _ORDER for operation in node.ops):
            raise self._refuse(node)
        operands = [self.compile(operand) for operand in (node.left, *node.comparators)]
        operations = [_COMPARISONS[type(operation)] for operation in node.ops]
        if len(operations) == 1:
            return _comparison(operations[0], *operands)

        def compare(values: Values) -> bool:
            found = [operand(values) for operand in operands]
            try:
                return all(op(a, b) for op, a, b in zip(operations, found, found[1:], strict=False))
            except TypeError:
                return False

        return compare

    def _call(self, node: ast.Call) -> _Evaluate:
        if node.keywords:
            raise self._refuse(node, "functions take no keywords here")
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            arguments = [self.compile(argument) for argument in node.args]
            return self._method(node.func.attr, self.compile(node.func.value), arguments)
        if isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            return self._match(node, node.func.id)
        raise self._refuse(node, f"allowed are {', '.join(_FUNCTIONS)} and the methods {', '.join(_METHODS)}")

    def _match(self, node: ast.Call, function: str) -> _Evaluate:
        if len(node.args) != 2 or not isinstance(node.args[0], ast.Constant) or not isinstance(node.args[0].value, str):
            raise self._refuse(node, 'write it as search("regular expression", name)')
        try:
            match = getattr(compile_pattern(node.args[0].value), function)
        except ExpressionError as error:
            raise self._refuse(node, str(error)) from error
        text = self.compile(node.args[1])
        # None and not False, so that "search(…) is not None" means what it means in Python.
        return lambda values: True if match(str(text(values))) is not None else None

    @staticmethod
    def _method(name: str, owner: _Evaluate, arguments: list[_Evaluate]) -> _Evaluate:
        def call(values: Values) -> Any:
            text = owner(values)
            if not isinstance(text, str):
                return False
            found = [tuple(v) if isinstance(v, list) else v for v in (argument(values) for argument in arguments)]
            return getattr(text, name)(*found)

        return call


def _true(part: _Evaluate, values: Values) -> bool:
    try:
        return bool(part(values))
    except (TypeError, AttributeError, ValueError, LookupError, ZeroDivisionError, OverflowError):
        return False

"""Structural matching of a pattern against libcst nodes.

What a formatter may change does not matter: whitespace, line breaks, comments, redundant parentheses,
trailing commas, the order of keyword arguments, quotes of strings, one-line suites. Every function yields all
ways to match, so that a choice made for one ``...`` can be taken back when a later part does not fit.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import libcst as cst

from patcher.generated_names import WRAP_FUNCTION
from patcher.match.pattern import ANY, CAPTURE_PREFIX, Pattern

Bindings = Mapping[str, cst.CSTNode]
StatementNode = cst.BaseSmallStatement | cst.BaseCompoundStatement

_FORMATTING = frozenset(
    [
        "lpar",
        "rpar",
        "lbracket",
        "rbracket",
        "lbrace",
        "rbrace",
        "comma",
        "semicolon",
        "leading_lines",
        "header",
        "footer",
        "trailing_whitespace",
        "lines_after_decorators",
        "equal",
        "dot",
        "colon",
        "first_colon",
        "second_colon",
        "indent",
        "lines_after_type_params",
        "star_etc_comma",
        "posonly_ind",
    ]
)
# Asking for the type is much quicker than isinstance with libcst's abstract classes, and these have no subclasses.
_SUITES = frozenset((cst.IndentedBlock, cst.SimpleStatementSuite))
_ITEMS = frozenset((cst.Expr, cst.Element, cst.SubscriptElement, cst.StarredElement))


@cache
def _is_node(kind: Any) -> bool:
    return issubclass(kind, cst.CSTNode)


@cache
def relevant_fields(node_type: type[cst.CSTNode]) -> tuple[str, ...]:
    """The fields of a node type that carry meaning, in source order."""
    names: dict[str, Any] = node_type.__dataclass_fields__
    return tuple(name for name in names if name not in _FORMATTING and not name.startswith("whitespace"))


def flatten(body: Sequence[cst.CSTNode] | cst.BaseSuite) -> list[StatementNode]:
    """The statements of a block, with ``a; b`` taken apart."""
    lines = body.body if isinstance(body, cst.BaseSuite) else body
    statements: list[StatementNode] = []
    for line in lines:
        if isinstance(line, cst.SimpleStatementLine):
            statements.extend(line.body)
        elif isinstance(line, (cst.BaseSmallStatement, cst.BaseCompoundStatement)):
            statements.append(line)
    return statements


def is_open(pattern: Any) -> bool:
    """Whether a pattern is ``...`` or a capture, which any expression matches."""
    return _is_any(pattern) or (isinstance(pattern, cst.Name) and bool(_capture_name(pattern)))


def match_expression(pattern: Pattern, node: cst.CSTNode) -> Bindings | None:
    """Bindings of the first way in which an expression pattern matches ``node``, or None."""
    if pattern.expression is None:
        return None
    return next(match(pattern.expression, node, {}), None)


def match_statements(pattern: Pattern, block: Sequence[StatementNode], start: int) -> tuple[int, Bindings] | None:
    """Match consecutive statements of a block from index ``start``; returns the end index and the bindings."""
    return next(_match_run(pattern.statements, block, start, {}, header=pattern.header), None)


def same_code(first: cst.CSTNode, second: cst.CSTNode) -> bool:
    """Whether two pieces of code differ at most in formatting; ``...`` in them is literal."""
    return next(_match_any(first, second, {}, literal=True), None) is not None


def match(pattern: Any, node: Any, bound: Bindings) -> Iterator[Bindings]:
    """All ways in which ``pattern`` matches ``node``."""
    return _match_any(pattern, node, bound, literal=False)


def _match_any(pattern: Any, node: Any, bound: Bindings, *, literal: bool) -> Iterator[Bindings]:
    node = see_through(node)
    if isinstance(pattern, (list, tuple)):
        if isinstance(node, (list, tuple)):
            yield from _match_sequence(pattern, node, bound, literal)
    elif not _is_node(pattern.__class__):
        if pattern == node:
            yield bound
    elif not literal and (name := _capture_name(pattern)):
        yield from _capture(name, node, bound)
    elif not literal and _is_any(pattern):
        if isinstance(node, cst.BaseExpression):
            yield bound
    else:
        yield from _match_node(pattern, node, bound, literal)


def _match_node(pattern: cst.CSTNode, node: Any, bound: Bindings, literal: bool) -> Iterator[Bindings]:
    if type(pattern) in _SUITES and type(node) in _SUITES:
        yield from _match_block(flatten(pattern), flatten(node), bound, literal)  # type: ignore[arg-type]
    elif not literal and type(pattern) is cst.Assign and type(node) is cst.AnnAssign:
        yield from _match_annotated(pattern, node, bound)
    elif type(pattern) in LITERALS and type(node) in LITERALS:
        if _literal_value(pattern) == _literal_value(node):
            yield bound
    elif type(pattern) is type(node):
        yield from _match_fields(pattern, node, bound, literal)


def _capture_name(pattern: cst.CSTNode) -> str:
    if type(pattern) is cst.Name and pattern.value.startswith(CAPTURE_PREFIX):
        return pattern.value[len(CAPTURE_PREFIX) :]
    return ""


def _match_fields(pattern: cst.CSTNode, node: Any, bound: Bindings, literal: bool) -> Iterator[Bindings]:
    if isinstance(pattern, cst.Call):
        for found in _match_any(pattern.func, node.func, bound, literal=literal):
            yield from _match_arguments(pattern.args, node.args, found, literal)
        return
    if isinstance(pattern, cst.Subscript):
        for found in _match_any(pattern.value, node.value, bound, literal=literal):
            yield from _match_subscript(pattern, node, found, literal)
        return
    if isinstance(pattern, cst.Parameters) and not literal and _any_parameters(pattern):
        yield from _match_open_parameters(pattern, node, bound)
        return
    names = [
        name
        for name in relevant_fields(type(pattern))
        if literal or not _left_open(pattern, name, getattr(pattern, name))
    ]
    yield from _match_in_turn([(getattr(pattern, name), getattr(node, name)) for name in names], bound, literal)


def _match_in_turn(pairs: Sequence[tuple[Any, Any]], bound: Bindings, literal: bool) -> Iterator[Bindings]:
    if not pairs:
        yield bound
        return
    (pattern, node), rest = pairs[0], pairs[1:]
    for found in _match_any(pattern, node, bound, literal=literal):
        yield from _match_in_turn(rest, found, literal)


def _left_open(pattern: cst.CSTNode, name: str, value: Any) -> bool:
    """Whether the pattern says nothing about this field, so that the code may have anything there."""
    if isinstance(pattern, (cst.FunctionDef, cst.ClassDef)) and name == "decorators":
        return not value
    if name in ("returns", "annotation", "type_parameters", "type_comment"):
        return value is None and not isinstance(pattern, cst.AnnAssign)
    if isinstance(pattern, cst.FormattedString):
        return name in ("start", "end")
    # ``else: ...`` stands for any statements, none included.
    return name == "orelse" and isinstance(value, cst.Else) and _only_dots(value.body)


def _match_header(pattern: StatementNode, node: StatementNode, bound: Bindings) -> Iterator[Bindings]:
    if type(pattern) is not type(node):
        return
    ignored = {"body", "orelse", "finalbody", "handlers"}
    names = [
        name
        for name in relevant_fields(type(pattern))
        if name not in ignored and not _left_open(pattern, name, getattr(pattern, name))
    ]
    yield from _match_in_turn([(getattr(pattern, name), getattr(node, name)) for name in names], bound, False)


def _match_annotated(pattern: cst.Assign, node: cst.AnnAssign, bound: Bindings) -> Iterator[Bindings]:
    if len(pattern.targets) == 1 and node.value is not None:
        for found in match(pattern.targets[0].target, node.target, bound):
            yield from match(pattern.value, node.value, found)


def _capture(name: str, node: Any, bound: Bindings) -> Iterator[Bindings]:
    if not isinstance(node, cst.CSTNode):
        return
    earlier = bound.get(name)
    if earlier is None:
        yield {**bound, name: node}
    elif same_code(earlier, node):
        yield bound


def _match_arguments(
    patterns: Sequence[cst.Arg], nodes: Sequence[cst.Arg], bound: Bindings, literal: bool
) -> Iterator[Bindings]:
    """Positional arguments in order; keywords in any order; ``...`` takes any further arguments."""
    dots = not literal and any(_is_any_argument(argument) for argument in patterns)
    by_position = [argument for argument in patterns if argument.keyword is None and argument.star != "**"]
    by_keyword = [argument for argument in patterns if argument not in by_position]
    node_positions = [argument for argument in nodes if argument.keyword is None and argument.star != "**"]
    node_keywords = [argument for argument in nodes if argument not in node_positions]
    if not dots and len(by_keyword) != len(node_keywords):
        return
    # Dots that come after keywords still stand for any arguments, positional ones included.
    if dots and not any(_is_any_argument(argument) for argument in by_position[-1:]):
        last_dots = max(index for index, argument in enumerate(patterns) if _is_any_argument(argument))
        if any(argument.keyword is not None for argument in patterns[:last_dots]):
            by_position = [*by_position, patterns[last_dots]]
    for found in _match_sequence(by_position, node_positions, bound, literal):
        yield from _match_keywords(by_keyword, node_keywords, found, literal)


def _match_keywords(
    patterns: Sequence[cst.Arg], nodes: Sequence[cst.Arg], bound: Bindings, literal: bool
) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for index, node in enumerate(nodes):
        for found in _match_argument(patterns[0], node, bound, literal):
            rest = [*nodes[:index], *nodes[index + 1 :]]
            yield from _match_keywords(patterns[1:], rest, found, literal)


def _match_argument(pattern: cst.Arg, node: cst.Arg, bound: Bindings, literal: bool) -> Iterator[Bindings]:
    pairs = [(pattern.star, node.star), (pattern.keyword, node.keyword), (pattern.value, node.value)]
    return _match_in_turn(pairs, bound, literal)


def _match_subscript(pattern: cst.Subscript, node: cst.Subscript, bound: Bindings, literal: bool) -> Iterator[Bindings]:
    wanted, given = _indices(pattern), _indices(node)
    if not literal and len(wanted) == 1 and is_dots(wanted[0]):
        yield bound
    elif _is_tuple_index(pattern) == _is_tuple_index(node) or any(map(is_dots, wanted)):
        yield from _match_sequence(wanted, given, bound, literal)


def _indices(node: cst.Subscript) -> Sequence[Any]:
    """The index expressions; ``x[(a, b)]`` is ``x[a, b]``."""
    only = node.slice[0].slice if len(node.slice) == 1 else None
    if isinstance(only, cst.Index) and isinstance(only.value, cst.Tuple):
        return [element.value if type(element) is cst.Element else element for element in only.value.elements]
    return [
        element.slice.value if isinstance(element.slice, cst.Index) and not element.slice.star else element.slice
        for element in node.slice
    ]


def _is_tuple_index(node: cst.Subscript) -> bool:
    only = node.slice[0]
    if len(node.slice) > 1 or isinstance(only.comma, cst.Comma):
        return True
    return isinstance(only.slice, cst.Index) and isinstance(only.slice.value, cst.Tuple)


def _match_sequence(
    patterns: Sequence[Any], nodes: Sequence[Any], bound: Bindings, literal: bool
) -> Iterator[Bindings]:
    if not patterns:
        if not nodes:
            yield bound
        return
    if not literal and is_dots(patterns[0]):
        for taken in range(len(nodes) + 1):
            yield from _match_sequence(patterns[1:], nodes[taken:], bound, literal)
        return
    if nodes:
        for found in _match_any(patterns[0], nodes[0], bound, literal=literal):
            yield from _match_sequence(patterns[1:], nodes[1:], found, literal)


def _match_block(
    patterns: Sequence[StatementNode], nodes: Sequence[StatementNode], bound: Bindings, literal: bool
) -> Iterator[Bindings]:
    if literal:
        yield from _match_sequence(patterns, nodes, bound, literal)
        return
    for end, found in _match_run(patterns, nodes, 0, bound):
        if end == len(nodes):
            yield found


def _match_run(
    patterns: Sequence[StatementNode],
    block: Sequence[StatementNode],
    start: int,
    bound: Bindings,
    *,
    header: bool = False,
) -> Iterator[tuple[int, Bindings]]:
    """Match statements from ``start`` on; ``...`` takes as few statements as possible first.

    With ``header``, of the last pattern only the first line counts.
    """
    if not patterns:
        yield start, bound
        return
    rest = patterns[1:]
    if is_dots(patterns[0]):
        for end in range(start, len(block) + 1):
            yield from _match_run(rest, block, end, bound, header=header)
        return
    if start < len(block):
        match_one = _match_header if header and not rest else match
        for found in match_one(patterns[0], block[start], bound):
            yield from _match_run(rest, block, start + 1, found, header=header)


def is_dots(node: Any) -> bool:
    """Whether a part of a pattern stands for any number of arguments, statements or elements."""
    if type(node) is cst.Arg:
        return _is_any_argument(node)
    if type(node) in _ITEMS:
        node = getattr(node, "value", None) or getattr(node, "slice", None)
    if type(node) is cst.Index:
        node = node.value
    return _is_any(node)


def _is_any(node: Any) -> bool:
    return type(node) is cst.Name and node.value == ANY


def _is_any_argument(argument: cst.Arg) -> bool:
    value = argument.value
    if argument.keyword is not None:
        return False
    return _is_any(value)


def _any_parameters(parameters: cst.Parameters) -> bool:
    return isinstance(parameters.star_arg, cst.Param) and parameters.star_arg.name.value == ANY


def _match_open_parameters(pattern: cst.Parameters, node: cst.Parameters, bound: Bindings) -> Iterator[Bindings]:
    """The first parameters in order, those after ``...`` anywhere behind them."""
    first = [*pattern.posonly_params, *pattern.params]
    given = [*node.posonly_params, *node.params, *node.kwonly_params]
    for found in _match_sequence(first, given[: len(first)], bound, literal=False):
        pairs: list[tuple[Any, Any]] = []
        for wanted in pattern.kwonly_params:
            same = [parameter for parameter in given[len(first) :] if parameter.name.value == wanted.name.value]
            if not same:
                return
            pairs.append((wanted, same[0]))
        yield from _match_in_turn(pairs, found, False)


def _only_dots(body: cst.BaseSuite) -> bool:
    statements = flatten(body)
    return len(statements) == 1 and is_dots(statements[0])


def see_through(node: Any) -> Any:
    """A value that an earlier edit wrapped counts as the value itself."""
    while type(node) is cst.Call and type(node.func) is cst.Name and node.func.value == WRAP_FUNCTION:
        node = node.args[1].value
    return node


LITERALS = frozenset((cst.SimpleString, cst.Integer, cst.Float, cst.Imaginary, cst.ConcatenatedString))


def _literal_value(node: Any) -> Any:
    code = cst.Module([]).code_for_node(node)
    try:
        value = ast.literal_eval(code)
    except (ValueError, SyntaxError):
        return code
    return type(value), value

"""Patterns: Python with ``...`` (any arguments, any statements) and ``$NAME`` (captures an expression).

A pattern is turned into ordinary Python that libcst can parse: ``$NAME`` and ``...`` become reserved names, the
latter with a star among the arguments of a call or the parameters of a function. Python itself allows a literal
``...`` in fewer places than a pattern does.
"""

from __future__ import annotations

import ast
import keyword
import re
import textwrap
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import libcst as cst

from patcher.errors import EditError

ANY = "__tensortap_any__"
CAPTURE_PREFIX = "__tensortap_capture_"
MATCH_CAPTURE = "MATCH"
RETURN_CAPTURES = ("return", "RETURN")
ARGUMENTS_CAPTURE = "arguments"

DEEPEST = 100
"""Brackets in brackets."""
LONGEST = 2000
"""Names, numbers, strings and signs."""

_STRING = r"'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\""
_TOKEN = re.compile(
    rf"(?P<string>{_STRING})|(?P<comment>\#[^\n]*)|\$(?P<capture>[A-Za-z_]\w*)|(?P<dots>\.\.\.)"
    r"|(?P<name>[^\W\d]\w*)|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern: one expression, or consecutive statements of one block."""

    text: str
    kind: Literal["expression", "statements"]
    expression: cst.BaseExpression | None = None
    statements: tuple[cst.BaseSmallStatement | cst.BaseCompoundStatement, ...] = ()
    header: bool = False
    """The pattern is only the first line of a compound statement (``if x:``): any body, any ``else``."""


@lru_cache(maxsize=4096)
def parse_pattern(text: str) -> Pattern:
    """Parse a pattern; raises EditError that quotes it and says where it is not Python."""
    stripped = textwrap.dedent(text).strip()
    if not stripped:
        raise EditError("the pattern is empty")
    _refuse_too_deep(stripped)
    source = to_python(stripped)
    if source.strip("() ") == ANY:
        raise EditError(f"the pattern {stripped!r} would match everything")
    expression = _parse_expression(source)
    if expression is not None:
        return Pattern(stripped, "expression", expression=expression)
    statements = _parse_statements(source)
    header = False
    if statements is None and (completed := _completed(stripped)) != stripped:
        return parse_pattern(completed)
    if statements is None and source.rstrip().endswith(":"):
        statements = _parse_statements(source.rstrip() + " pass")
        header = statements is not None
    if not statements:
        raise EditError(_not_python(stripped, source))
    only = statements[0]
    if len(statements) == 1 and isinstance(only, cst.Expr):
        return Pattern(stripped, "expression", expression=only.value)
    return Pattern(stripped, "statements", statements=tuple(statements), header=header)


def _refuse_too_deep(text: str) -> None:
    """Parsers recurse, and one that runs out of stack ends the process."""
    depth = tokens = 0
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "space":
            continue
        tokens += 1
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(match.group(), 0)
        if depth > DEEPEST or tokens > LONGEST:
            deep, long = f"brackets nested more than {DEEPEST} deep", f"more than {LONGEST} names and signs"
            what = deep if depth > DEEPEST else long
            raise EditError(f"the pattern {text[:40]!r}... is too large: {what}; use '...' for what does not matter")


def to_python(text: str) -> str:
    """A pattern as Python: captures and ``...`` become reserved names where Python would not take them."""
    tokens = [(match.lastgroup or "other", match.group(), match) for match in _TOKEN.finditer(text)]
    solid = [index for index, (kind, _, _) in enumerate(tokens) if kind not in ("space", "comment")]
    out = [token for _, token, _ in tokens]
    calls: list[bool] = []
    for position, index in enumerate(solid):
        kind, token, match = tokens[index]
        before = tokens[solid[position - 1]] if position else ("other", "", match)
        after = tokens[solid[position + 1]][1] if position + 1 < len(solid) else ""
        if kind == "capture":
            out[index] = f"{CAPTURE_PREFIX}{match.group('capture')}"
        elif kind == "dots":
            in_call = bool(calls) and calls[-1] and before[1] in ("(", ",") and after in (",", ")")
            starred = in_call or (before[1] == "lambda" and after == ":")
            if before[1] != "from":  # a relative import
                out[index] = f"*{ANY}" if starred else ANY
        elif token in "([{":
            calls.append(token == "(" and _is_callee(before[0], before[1]))
        elif token in ")]}" and calls:
            calls.pop()
    return "".join(out)


def captured_names(text: str) -> list[str]:
    """The names of the captures that a pattern or a piece of code uses, in order of appearance."""
    names = [match.group("capture") for match in _TOKEN.finditer(text) if match.lastgroup == "capture"]
    return list(dict.fromkeys(names))


def names_in(text: str) -> frozenset[str]:
    """The names that a pattern or a piece of code spells out: code that matches a pattern holds all of them."""
    names = {match.group("name") for match in _TOKEN.finditer(text) if match.lastgroup == "name"}
    return frozenset(name for name in names if not keyword.iskeyword(name))


def substitute(text: str, captures: dict[str, str]) -> str:
    """Put the captured source texts in the place of ``$NAME``; strings and comments are left alone.

    Raises EditError for a name that nothing captured.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group("capture")
        if name is None:
            return match.group()
        if name not in captures:
            known = ", ".join(f"${known}" for known in captures) or "none"
            raise EditError(f"${name} is captured nowhere (captured here: {known})")
        return captures[name]

    return _TOKEN.sub(value, text)


def replace_name(text: str, old: str, new: str) -> str:
    """Give a name another one, except where it is an attribute, a keyword argument, or within strings and comments."""
    tokens = [(match.lastgroup or "other", match.group()) for match in _TOKEN.finditer(text)]
    solid = [index for index, (kind, _) in enumerate(tokens) if kind not in ("space", "comment")]
    out = [token for _, token in tokens]
    for position, index in enumerate(solid):
        before = tokens[solid[position - 1]][1] if position else ""
        after = tokens[solid[position + 1]][1] if position + 1 < len(solid) else ""
        if tokens[index] == ("name", old) and before != "." and after != "=":
            out[index] = new
    return "".join(out)


def _completed(text: str) -> str:
    """A pattern that ends within brackets, as the first line of a wrapped call does, with any further contents."""
    ends: list[str] = []
    before: tuple[str, str] = ("other", "")
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup or "other", match.group()
        if kind in ("space", "comment"):
            continue
        if token in ("(", "[", "{"):
            grouping = token == "(" and not _is_callee(*before)
            ends.append(("" if grouping else ", ...") + {"(": ")", "[": "]", "{": "}"}[token])
        elif token in (")", "]", "}") and ends:
            ends.pop()
        before = (kind, token)
    if not ends:
        return text
    inner = "..." if before[1] in ("(", "[", "{", ",") else ", ..."
    return f"{text}\n{inner}{ends[-1][-1]}{''.join(reversed(ends[:-1]))}"


def _is_callee(kind: str, token: str) -> bool:
    """Whether brackets after this token are those of a call."""
    if kind == "name":
        return not _is_keyword(token)
    return kind in ("string", "capture") or token in (")", "]", "}")


def _is_keyword(name: str) -> bool:
    return keyword.iskeyword(name) and name not in ("None", "True", "False")


def _parse_expression(source: str) -> cst.BaseExpression | None:
    try:
        return cst.parse_expression(source)
    except (cst.ParserSyntaxError, ValueError):
        return None


def _parse_statements(source: str) -> list[cst.BaseSmallStatement | cst.BaseCompoundStatement] | None:
    try:
        module = cst.parse_module(source + "\n")
    except (cst.ParserSyntaxError, ValueError):
        return None
    found: list[cst.BaseSmallStatement | cst.BaseCompoundStatement] = []
    for line in module.body:
        if isinstance(line, cst.SimpleStatementLine):
            found.extend(line.body)
        elif isinstance(line, cst.BaseCompoundStatement):
            found.append(line)
    return found


def _not_python(text: str, source: str) -> str:
    try:
        ast.parse(source)
    except SyntaxError as error:
        lines = text.splitlines()
        line = lines[error.lineno - 1].strip() if error.lineno and error.lineno <= len(lines) else text
        return f"the pattern is not Python in its line {error.lineno}, {line!r}: {error.msg}"
    return f"the pattern {text!r} holds no code"

"""The code that edits put into a target: taps from the short form, and code from the config."""

from __future__ import annotations

import ast
import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from patcher.config.yaml_source import Origin
from patcher.errors import EditError
from patcher.generated_names import DUMPER, DUMPER_NAME, TAPS, VALUE_VARIABLE, WRAP_FUNCTION
from patcher.match.function_text import CodeLine
from patcher.match.pattern import captured_names, replace_name, substitute
from patcher.plan.edits import Code, ConditionalDims, Dump, ShortForm, Step, Tags
from patcher.rewrite.taps import InsertionPoint
from tensortap.dims import DimsError, parse_dims


def tap_lines(dump: Dump, point: InsertionPoint, default_value: str | None) -> list[CodeLine]:
    """The statement form of a short-form tap; a failing tag or value is reported and breaks nothing."""
    number = point.tap_of(dump)
    value = _expression(dump.value, point) if dump.value is not None else default_value
    if value is None:
        near = difflib.get_close_matches("value", [tag for tag, _ in dump.tags], n=1)
        hint = f"; did you mean 'value' by {near[0]!r}?" if near else ""
        raise EditError(f"{point.edit.origin}: dump {dump.name!r} has no 'value', and none is implied here{hint}")
    tap = f"{TAPS}[{number}]"
    condition = "" if dump.condition is None else f"if {_expression(dump.condition, point)}: "
    return [
        CodeLine(f"if {tap}.on:"),
        CodeLine("    try:"),
        CodeLine(f"        {condition}{tap}.record({_record_arguments(dump, point, value)})"),
        CodeLine("    except Exception:"),
        CodeLine(f"        {tap}.failed()"),
    ]


def step_lines(step: Step, point: InsertionPoint) -> list[CodeLine]:
    """The beginning or the end of a step. One whose batch cannot be evaluated begins all the same, without a layout."""
    method = "end_step" if step.ends else "step"
    tap = f"{TAPS}[{point.tap(method, 'step')}]"
    tags = [f"{tag}={_tag(tag, code, point)}" for tag, code in step.tags]
    batch = [] if step.batch is None else [_expression(step.batch, point)]
    lines = [f"{tap}.{method}({', '.join([*batch, *tags])})"]
    if batch or tags:
        lines = _guarded(lines, tap, f"{tap}.{method}()")
    if step.condition is not None:
        lines = [f"if {_expression(step.condition, point)}:", *(f"    {line}" for line in lines)]
        lines = _guarded(lines, tap)
    return [CodeLine(line) for line in lines]


def _guarded(lines: Sequence[str], tap: str, instead: str = "") -> list[str]:
    found = ["try:", *(f"    {line}" for line in lines), "except Exception:", f"    {tap}.failed()"]
    return [*found, f"    {instead}"] if instead else found


def tagged_lines(tags: Tags, point: InsertionPoint, statements: str) -> list[CodeLine]:
    """Statements, whose text is given unindented, run with tags for everything that is recorded meanwhile."""
    tap = f"{TAPS}[{point.tap('tags', 'tags')}]"
    given = ", ".join(f"{tag!r}: {_tag(tag, code, point)}" for tag, code in tags.tags)
    header = CodeLine(f"with {tap}.tagging(lambda: {{{given}}}):")
    continued = _string_continuations(ast.parse(statements))
    body = [
        CodeLine(line if number in continued else f"    {line}", verbatim=number in continued)
        for number, line in enumerate(statements.split("\n"), start=1)
    ]
    return [header, *body]


def wrapping(dump: Dump, point: InsertionPoint) -> tuple[str, str]:
    """What goes before and after an expression that is then evaluated once and recorded (it, or ``value``)."""
    number = point.tap_of(dump)
    variable = VALUE_VARIABLE
    inner = replace(point, captures={**point.captures, "MATCH": variable})
    value = variable if dump.value is None else _expression(dump.value, inner)
    tap = f"{TAPS}[{number}]"
    record = f"{tap}.record({_record_arguments(dump, inner, value)})"
    if dump.condition is not None:
        record = f"{record} if {_condition(dump.condition, inner)} else None"
    record = f"lambda {variable}: {record}"
    return f"{WRAP_FUNCTION}({tap}, ", f", {record})"


def config_code(code: Code, point: InsertionPoint) -> list[CodeLine]:
    """Code from a config, with captures put in and ``dumper`` turned into ours."""
    text = _substituted(textwrap.dedent(code.text).strip("\n").rstrip(), point, code.origin)
    tree = _parse(text, code.origin)
    if not _binds_dumper(tree, point.edit.preamble):
        text = _Translator(text, tree, point, code.origin).translated()
        tree = _parse(text, code.origin)
    continued = _string_continuations(tree)
    return [CodeLine(line, verbatim=number in continued) for number, line in enumerate(text.split("\n"), start=1)]


def written_code(code: Code, point: InsertionPoint) -> list[tuple[str, str, bool]]:
    """Each line of code from a config that may be half a statement: as it has to be, as it was written, and whether
    all of the code is whole statements."""
    text = code.text.strip()
    written = text.splitlines()
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return [(_with_our_dumper(line, point.edit.preamble), line, False) for line in written]
    made = "\n".join(line.text for line in config_code(replace(code, text=text), point)).splitlines() if text else []
    return [(new, old, True) for new, old in zip(made, written, strict=True)]


def _with_our_dumper(line: str, preamble: str) -> str:
    """A line that is no Python by itself, with ``dumper`` turned into ours."""
    if _binds_dumper(ast.Module([], []), preamble):
        return line
    return replace_name(line, DUMPER_NAME, DUMPER)


def config_expression(code: Code, point: InsertionPoint) -> str | None:
    """Code from a config as one expression, on one line, or None when it is statements."""
    text = _substituted(textwrap.dedent(code.text).strip(), point, code.origin)
    try:
        tree = ast.parse(f"({text}\n)", mode="eval")
    except SyntaxError:
        return None
    return ast.unparse(tree.body)


def uses_capture(content: Code | ShortForm, name: str) -> bool:
    """Whether code or any expression of a short-form tap refers to ``$name``."""
    codes = (content,) if isinstance(content, Code) else content.expressions()
    return any(name in captured_names(code.text) for code in codes)


def _record_arguments(dump: Dump, point: InsertionPoint, value: str) -> str:
    arguments = [value]
    if isinstance(dump.dims, ConditionalDims):
        condition = _condition(dump.dims.condition, point)
        arguments.append(f"{dump.dims.then!r} if {condition} else {dump.dims.otherwise!r}")
    elif dump.dims is not None:
        arguments.append(repr(dump.dims))
    arguments += [f"{tag}={_tag(tag, code, point)}" for tag, code in dump.tags]
    return ", ".join(arguments)


def _tag(tag: str, code: Code, point: InsertionPoint) -> str:
    try:
        return _expression(code, point)
    except EditError as error:
        near = difflib.get_close_matches(tag, _KEYS, n=1)
        hint = f" (the value of the tag {tag!r}; did you mean the key {near[0]!r}?)" if near else f" (the tag {tag!r})"
        raise EditError(f"{error}{hint}") from None


_DUMP_KEYWORDS = ("name", "value", "save", "dims", "dims_grad", "level", "grad", "step")
"""What ``dumper.dump`` takes beside tags."""
_KEYS = ("value", "dims", "level", "grad", "inputs", "operation", "batch")


def _condition(code: Code, point: InsertionPoint) -> str:
    """An expression that can stand between ``if`` and ``else``."""
    return f"({_expression(code, point)})"


def _expression(code: Code, point: InsertionPoint) -> str:
    text = _substituted(code.text.strip(), point, code.origin)
    try:
        tree = ast.parse(f"({text}\n)", mode="eval")
    except SyntaxError as error:
        raise EditError(f"{code.origin}: {code.text.strip()!r} is not a Python expression: {error.msg}") from None
    if not _binds_dumper(ast.Module([ast.Expr(tree.body)], []), point.edit.preamble):
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == DUMPER_NAME:
                node.id = DUMPER
    return ast.unparse(tree.body)


def _substituted(text: str, point: InsertionPoint, origin: Origin) -> str:
    try:
        return substitute(text, dict(point.captures))
    except EditError as error:
        raise EditError(f"{origin}: {error}") from None


def _parse(text: str, origin: Origin) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        lines = text.split("\n")
        shown = lines[line - 1].strip() if line <= len(lines) else ""
        message = getattr(error, "msg", str(error))
        raise EditError(
            f"{origin.path}:{origin.line + line - 1}: the code of the edit does not compile: {message}: {shown!r}"
        ) from None


def _binds_dumper(tree: ast.Module, preamble: str) -> bool:
    trees = [tree]
    if preamble:
        try:
            trees.append(ast.parse(textwrap.dedent(preamble)))
        except SyntaxError:
            return False
    return any(_binds(node) for tree in trees for node in ast.walk(tree))


def _binds(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id == DUMPER_NAME and not isinstance(node.ctx, ast.Load)
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return any((alias.asname or alias.name.split(".")[0]) == DUMPER_NAME for alias in node.names)
    if isinstance(node, ast.arg):
        return node.arg == DUMPER_NAME
    return isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == DUMPER_NAME


def _string_continuations(tree: ast.Module) -> set[int]:
    continued: set[int] = set()
    for node in ast.walk(tree):
        literal = isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
        )
        if literal and node.end_lineno is not None and node.end_lineno > node.lineno:  # type: ignore[attr-defined]
            continued.update(range(node.lineno + 1, node.end_lineno + 1))  # type: ignore[attr-defined]
    return continued


class _Translator:
    """Turns the name ``dumper`` in inserted code into ours, by position, so that the rest stays as written."""

    def __init__(self, text: str, tree: ast.Module, point: InsertionPoint, origin: Origin) -> None:
        self.lines = [line.encode() for line in text.split("\n")]
        self.tree = tree
        self.point = point
        self.origin = origin
        self.replacements: list[tuple[int, int, int, bytes]] = []
        """Line, first column, end column (bytes) and what goes there."""

    def translated(self) -> str:
        guarded = self._guarded_calls()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and node.id == DUMPER_NAME and id(node) not in guarded:
                self._replace(node, DUMPER)
            elif isinstance(node, ast.Call):
                self._note_step(node)
        for line, start, end, new in sorted(self.replacements, reverse=True):
            old = self.lines[line - 1]
            self.lines[line - 1] = old[:start] + new + old[end:]
        return b"\n".join(self.lines).decode()

    def _replace(self, node: ast.Name, new: str) -> None:
        text = self.lines[node.lineno - 1][node.col_offset :]
        if not text.startswith(DUMPER_NAME.encode()):  # positions within f-strings are wrong before 3.12
            line = self.origin.line + node.lineno - 1
            raise EditError(f"{self.origin.path}:{line}: use 'dumper' outside of the f-string")
        end = node.col_offset + len(DUMPER_NAME)
        self.replacements.append((node.lineno, node.col_offset, end, new.encode()))

    def _guarded_calls(self) -> set[int]:
        """Guard each free-standing ``dumper.dump(...)``; returns the ids of the names that this replaces."""
        guarded: set[int] = set()
        for node in ast.walk(self.tree):
            if not (isinstance(node, ast.Expr) and _method(node.value) == "dump"):
                continue
            call = node.value
            assert isinstance(call, ast.Call)
            assert isinstance(call.func, ast.Attribute)
            name = call.func.value
            assert isinstance(name, ast.Name)
            tap = f"{TAPS}[{self._dump_tap(call)}]"
            line = self.lines[node.lineno - 1]
            alone = not line[: node.col_offset].strip() and not self._shares_line(node)
            opening = f"if {tap}.on: {tap}" if alone else f"{tap}.on and {tap}"
            self._replace(name, opening)
            guarded.add(id(name))
        return guarded

    def _shares_line(self, node: ast.Expr) -> bool:
        end = self.lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].strip()
        return end.startswith(b";") and end != b";"

    def _dump_tap(self, call: ast.Call) -> int:
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        name = call.args[0] if call.args else keywords.get("name")
        if name is None:
            line = self.origin.line + call.lineno - 1
            raise EditError(f"{self.origin.path}:{line}: dumper.dump needs a name as its first argument")
        text = name.value if isinstance(name, ast.Constant) else ast.unparse(name)
        for keyword in (keyword for keyword in call.keywords if keyword.arg not in (None, *_DUMP_KEYWORDS)):
            near = difflib.get_close_matches(str(keyword.arg), _DUMP_KEYWORDS, n=1, cutoff=0.8)
            if near:
                line = self.origin.line + keyword.value.lineno - 1
                raise EditError(
                    f"{self.origin.path}:{line}: dumper.dump would take {keyword.arg!r} for a tag; did you mean "
                    f"{near[0]!r}? (a tag needs a name that is less like it)"
                )
        self._check_dims(keywords.get("dims"))
        self._check_dims(keywords.get("dims_grad"))
        level, grad = keywords.get("level"), keywords.get("grad")
        return self.point.tap(
            str(text),
            level=str(level.value) if isinstance(level, ast.Constant) and level.value is not None else None,
            grad=bool(grad.value) if isinstance(grad, ast.Constant) else False,
        )

    def _check_dims(self, dims: ast.expr | None) -> None:
        if isinstance(dims, ast.Constant) and isinstance(dims.value, str):
            try:
                parse_dims(dims.value)
            except DimsError as error:
                raise EditError(f"{self.origin.path}:{self.origin.line + dims.lineno - 1}: {error}") from None

    def _note_step(self, call: ast.Call) -> None:
        method = _method(call)
        if method in ("step", "end_step"):
            self.point.tap(method, "step")


def _method(node: ast.AST) -> str | None:
    """The method of ``dumper`` that an expression calls."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    owner = node.func.value
    return node.func.attr if isinstance(owner, ast.Name) and owner.id == DUMPER_NAME else None

"""Rewriting one module: from its source and its edits to the new text."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import libcst as cst

from patcher.config.yaml_source import Origin
from patcher.errors import EditError, PatchError, TargetError
from patcher.generated_names import DUMPER, RETURN_VARIABLE, TAPS, WRAP_FUNCTION
from patcher.match.choose import FunctionScope
from patcher.match.function_text import CodeLine, FunctionBuffer, FunctionView, Line
from patcher.match.statements import Statement, end_of, index_function, start_of
from patcher.plan.edits import Code, Edit, FunctionPatch, ModulePatch
from patcher.rewrite.apply import apply_edit
from patcher.rewrite.code_checks import PREAMBLE, NameChecker, made_generator
from patcher.rewrite.entry import insert_at_entry, set_apart
from patcher.rewrite.inserted_code import config_code
from patcher.rewrite.line_edits import syntax_error
from patcher.rewrite.taps import Tap, TapTable, TargetEdit
from patcher.source.definitions import Scope, find_definitions, functions_within


@dataclass(frozen=True)
class RewrittenFunction:
    """A rewritten outermost function: where it was, and its new lines."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    """The function in the tree of the original source."""
    first: int
    last: int
    """1-based lines of the original, decorators included, both inclusive."""
    lines: tuple[Line, ...]
    nested: tuple[tuple[int, str], ...] = ()
    """First line and name of each function within it that holds an edit or a function that does."""


@dataclass(frozen=True)
class Landing:
    """Where one edit landed, or why it did not."""

    target: str
    edit: int
    summary: str
    origin: Origin
    lines: tuple[int, ...] = ()
    """1-based lines of the original file, one for each place."""
    error: str | None = None
    taps: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class RewrittenModule:
    """A module after its edits."""

    source: str
    tree: ast.Module
    """Of the original source."""
    functions: tuple[RewrittenFunction, ...]
    taps: tuple[Tap, ...]
    landings: tuple[Landing, ...]
    prelude: tuple[str, ...]
    prelude_line: int
    """The prelude goes after this 1-based line of the original (0: at the top)."""

    @property
    def errors(self) -> tuple[str, ...]:
        """Messages of the edits that did not land and should have."""
        return tuple(landing.error for landing in self.landings if landing.error and not landing.optional)

    @property
    def text(self) -> str:
        """The whole new source."""
        return self._with_prelude(self.prelude)

    @property
    def short_text(self) -> str:
        """The new source with what describes taps and configs cut short, for people."""
        described = f"{TAPS} = {DUMPER}.install_taps(... {len(self.taps)} taps ...)"
        return self._with_prelude([described if line.startswith(TAPS) else line for line in self.prelude])

    def _with_prelude(self, prelude: Sequence[str]) -> str:
        lines = self.source.split("\n")
        for function in sorted(self.functions, key=lambda function: function.first, reverse=True):
            lines[function.first - 1 : function.last] = [line.text for line in function.lines]
        lines[self.prelude_line : self.prelude_line] = prelude
        return "\n".join(lines)


@dataclass
class _ModuleState:
    """What the functions of one module share while they are rewritten."""

    source_lines: list[str]
    scope: Scope
    taps: TapTable
    names: NameChecker
    units: dict[int, tuple[ast.FunctionDef | ast.AsyncFunctionDef, FunctionBuffer]] = field(default_factory=dict)

    nested: dict[int, list[tuple[int, str]]] = field(default_factory=dict)

    def buffer(self, unit: ast.FunctionDef | ast.AsyncFunctionDef) -> FunctionBuffer:
        if id(unit) not in self.units:
            first, last = function_lines(unit)
            self.units[id(unit)] = (unit, FunctionBuffer.from_source(self.source_lines, first, last))
        return self.units[id(unit)][1]


def rewrite_module(source: str, patch: ModulePatch, file: str, taps: TapTable | None = None) -> RewrittenModule:
    """Apply all edits of a module. ``taps`` are those of its other texts, where it has several.

    ``source`` has ``\\n`` line breaks. An edit that does not land is in ``landings`` with its error; the
    others are applied all the same. Raises TargetError when the source is not Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise TargetError(f"{file}: the source of {patch.module} does not parse: {error}") from None
    taps = TapTable(file) if taps is None else taps
    state = _ModuleState(source.split("\n"), Scope(tree.body), taps, NameChecker(tree))
    landings: list[Landing] = []
    for function in patch.functions:
        try:
            landings.extend(_rewrite_function(state, function))
        except cst.ParserSyntaxError as error:
            raise TargetError(f"{function.target}: libcst cannot parse the function: {error.message}") from None
    functions = []
    for unit, buffer in state.units.values():
        owner, message = _compile_error(buffer, unit.name) if buffer.edited_by_lines else ("", "")
        if not message:
            _finish(buffer)
            owner, message = _compile_error(buffer, unit.name)
        if not message:
            owner, message = made_generator(buffer, unit)
        if message:
            landings = _with_failure(landings, patch, owner, message)
        first, last = function_lines(unit)
        nested = tuple(state.nested.get(id(unit), ()))
        functions.append(RewrittenFunction(unit, first, last, tuple(buffer.lines), nested))
    text = "\n".join(line.text for function in functions for line in function.lines)
    return RewrittenModule(
        source,
        tree,
        tuple(functions),
        tuple(state.taps.taps),
        tuple(landings),
        _prelude(patch, state.taps.taps, text),
        _prelude_line(tree),
    )


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int]:
    """First and last line of a function, decorators included."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    assert node.end_lineno is not None
    return first, node.end_lineno


def _rewrite_function(state: _ModuleState, patch: FunctionPatch) -> list[Landing]:
    definitions = find_definitions(state.scope, patch.path)
    if not definitions:
        raise TargetError(f"{patch.target}: no such function in the module that is being imported")
    for found in definitions:
        state.nested.setdefault(id(found.unit), []).extend(
            (function_lines(node)[0], node.name) for node in functions_within(found.unit)
        )
    scopes = [FunctionScope(state.buffer(found.unit), found.inner, found.ordinal) for found in definitions]
    # Lines are replaced as they stand in the file; what comes after a signature may be wanted as well.
    only_lines = bool(patch.edits) and all(edit.by_lines for edit in patch.edits)
    landings: list[Landing] = []
    for scope in scopes:
        for preamble in () if only_lines else patch.preambles:
            _insert_preamble(scope, preamble, patch, state.taps)
    undefined = state.names.unknown(patch, definitions)
    if PREAMBLE in undefined:
        origin = patch.preambles[0].origin
        landings.append(
            Landing(patch.target, PREAMBLE, "preamble", origin, error=_undefined(origin, undefined[PREAMBLE]))
        )
    landings += _land_all(scopes, patch, state.taps, undefined)
    for scope in scopes if only_lines else ():
        for preamble in patch.preambles if syntax_error(scope.buffer) is None else ():
            _insert_preamble(scope, preamble, patch, state.taps)
    return landings


def _undefined(origin: Origin, messages: Sequence[str]) -> str:
    return f"{origin}: {'; '.join(messages)}. If it comes from elsewhere, name it in 'undefined: [...]' of the edit"


def _land_all(
    scopes: Sequence[FunctionScope], patch: FunctionPatch, taps: TapTable, undefined: Mapping[int, Sequence[str]]
) -> list[Landing]:
    """Apply the edits in their order: those by lines together, and if that makes no Python of it, one by one."""
    before = len(taps.taps)
    put_back = [scope.buffer.remember() for scope in scopes]
    landings: list[Landing] = []
    for one_by_one in (False, True):
        landings = [
            _land(scopes, edit, patch.target, taps, undefined.get(edit.number, ()), one_by_one) for edit in patch.edits
        ]
        by_lines = [scope.buffer for scope in scopes if scope.buffer.edited_by_lines]
        if one_by_one or all(syntax_error(buffer) is None for buffer in by_lines):
            break
        taps.forget(before)
        for restore in put_back:
            restore()
    return landings


def _land(
    scopes: Sequence[FunctionScope], edit: Edit, target: str, taps: TapTable, undefined: Sequence[str], one_by_one: bool
) -> Landing:
    before = len(taps.taps)
    landing = Landing(target, edit.number, edit.summary, edit.origin, optional=edit.optional)
    if undefined and edit.optional:
        return replace(landing, error=_undefined(edit.origin, undefined))
    # Of an edit that need not land nothing may stay when it fails at one of its places.
    restore = [scope.buffer.remember() for scope in scopes] if edit.optional else []
    try:
        lines = apply_edit(scopes, TargetEdit(edit, target, taps), one_by_one=one_by_one)
    except (PatchError, cst.ParserSyntaxError) as error:
        by_lines = [owner for scope in scopes for owner, _ in scope.buffer.edited_by_lines]
        if isinstance(error, cst.ParserSyntaxError) and not by_lines:
            raise
        taps.forget(before)
        for put_back in restore:
            put_back()
        return replace(landing, error=str(error) if isinstance(error, PatchError) else _halves(edit, by_lines))
    names = tuple(tap.id for tap in taps.taps[before:])
    message = _undefined(edit.origin, undefined) if undefined else None
    return replace(landing, lines=tuple(dict.fromkeys(lines)), taps=names, error=message)


def _halves(edit: Edit, by_lines: Sequence[str]) -> str:
    return (
        f"{edit.origin}: {edit.summary} is looked for as Python, which the function is not after the edits by lines "
        f"before it ({', '.join(dict.fromkeys(by_lines))})"
    )


def _with_failure(landings: Sequence[Landing], patch: ModulePatch, owner: str, message: str) -> list[Landing]:
    """The landings with the one failed whose code does not compile; of a preamble, which has none, with one for it.

    Raises TargetError where it is not known whose code that is.
    """
    failed = [_failed(landing, owner, message) for landing in landings]
    if failed != list(landings):
        return failed
    owners = {f"{function.target}#preamble": function for function in patch.functions if function.preambles}
    if owner not in owners:
        raise TargetError(f"{patch.module}: a function does not compile as it is rewritten: {message}")
    target, origin = owners[owner].target, owners[owner].preambles[0].origin
    error = f"{origin}: the code of the preamble does not compile there: {message}"
    return [*failed, Landing(target, PREAMBLE, "preamble", origin, error=error)]


def _failed(landing: Landing, owner: str, message: str) -> Landing:
    if f"{landing.target}#{landing.edit}" != owner:
        return landing
    return replace(landing, error=f"{landing.origin}: the code of the edit does not compile there: {message}")


def _insert_preamble(scope: FunctionScope, preamble: Code, patch: FunctionPatch, taps: TapTable) -> None:
    index = set_apart(scope, 0)
    first = index.view.line_at(start_of(index.view, index.body.statements[0].node)[0])
    edit = Edit(0, preamble.origin, "entry", (), "before", preamble, preamble=preamble.text)
    code: list[CodeLine] = config_code(preamble, TargetEdit(edit, patch.target, taps).at(first.origin, {}))
    insert_at_entry(scope.buffer, index, code, "inserted", f"{patch.target}#preamble")
    for line in scope.buffer.lines:
        line.preamble = line.preamble or line.owner == f"{patch.target}#preamble"


def _finish(buffer: FunctionBuffer) -> None:
    """Carry out what was asked for at return statements, now that no edit can match them any more."""
    buffer.carry_out_wraps()
    if not any(line.returns for line in buffer.lines):
        return
    view = FunctionView(list(buffer.lines))
    unit = next(node for node in _functions(view.module))
    index = index_function(view, unit)
    hooked = [
        statement
        for statement in index.in_order
        if isinstance(statement.node, cst.Return) and view.line_at(start_of(view, statement.node)[0]).returns
    ]
    for statement in reversed(hooked):
        _finish_return(buffer, view, statement)


def _functions(module: cst.Module) -> list[cst.FunctionDef]:
    found: list[cst.FunctionDef] = []
    for node in module.body:
        if isinstance(node, cst.FunctionDef):
            found.append(node)
        elif isinstance(node, cst.If):
            found += [child for child in node.body.body if isinstance(child, cst.FunctionDef)]
    return found


def _finish_return(buffer: FunctionBuffer, view: FunctionView, statement: Statement) -> None:
    assert isinstance(statement.node, cst.Return)
    line_number, column = start_of(view, statement.node)
    first = view.line_at(line_number)
    last = view.line_at(end_of(view, statement.node)[0])
    indent = first.text[:column]
    hooks, first.returns = first.returns, []
    lines = [
        Line(code.at(indent), last.origin, kind=hook.kind, role="before", columns_kept=False, owner=hook.owner)
        for hook in hooks
        for code in hook.lines
    ]
    if not any(hook.needs_value for hook in hooks):
        for line in lines:
            line.origin = first.origin
        buffer.insert(buffer.lines.index(first), lines)
        return
    bare = statement.node.value is None
    value = f"{RETURN_VARIABLE} =" + (" None" if bare else "")
    first.text = indent + value + first.text[column + len("return") :]
    first.columns_kept = False
    # ``return None`` is not allowed in an asynchronous generator, a bare ``return`` is.
    lines.append(Line(indent + ("return" if bare else f"return {RETURN_VARIABLE}"), last.origin, columns_kept=False))
    buffer.insert(buffer.lines.index(last) + 1, lines)


def _compile_error(buffer: FunctionBuffer, name: str) -> tuple[str, str]:
    """The edit whose code cannot stand where it is put, and why; two empty strings when all is well."""
    error = syntax_error(buffer)
    if error is None:
        other = _other_name(buffer, name) if buffer.edited_by_lines else ""
        return (buffer.edited_by_lines[-1][0], other) if other else ("", "")
    number, message = error
    if not buffer.lines:
        return buffer.edited_by_lines[-1][0], "nothing of the function is left"
    line = buffer.lines[number]
    before = [owner for owner, origin in buffer.edited_by_lines if origin <= line.origin]
    owners = [*(candidate.owner for candidate in buffer.lines if candidate.owner), *before]
    place = f"line {line.origin}, " if buffer.edited_by_lines else ""
    return line.owner or (
        owners[-1] if owners else buffer.edited_by_lines[0][0]
    ), f"{message}: {place}{line.text.strip()!r}"


def _other_name(buffer: FunctionBuffer, name: str) -> str:
    """What is wrong where lines that were replaced have made another definition of the function; empty: nothing."""
    found = ast.parse(textwrap.dedent("if 1:\n" + buffer.text if buffer.lines[0].text[:1].isspace() else buffer.text))
    body = found.body[0].body if isinstance(found.body[0], ast.If) else found.body
    function = body[0]
    if len(body) == 1 and isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and function.name == name:
        return ""
    return f"what is left is not a function called {name!r}"


def _prelude(patch: ModulePatch, taps: Sequence[Tap], text: str) -> tuple[str, ...]:
    lines: list[str] = []
    if taps or re.search(rf"\b{DUMPER}\b", text):
        lines.append(f"from dumper import dumper as {DUMPER}")
        entries = ", ".join(repr(tap.as_dict()) for tap in taps) + ("," if taps else "")
        configs = patch.configs
        config = {
            "paths": list(configs.paths),
            "sha256": configs.sha256,
            "texts": dict(zip(configs.paths, configs.texts, strict=True)),
        }
        lines.append(f"{TAPS} = {DUMPER}.install_taps({patch.module!r}, ({entries}), {config!r})")
    if re.search(rf"\b{WRAP_FUNCTION}\(", text):
        lines.append(f"from patcher.load.runtime import record_value as {WRAP_FUNCTION}")
    return tuple(lines)


def _prelude_line(tree: ast.Module) -> int:
    """The line after which the module's own code begins: docstring and ``__future__`` imports come first."""
    line = 0
    for number, node in enumerate(tree.body):
        docstring = (
            number == 0
            and isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not (docstring or future):
            break
        line = node.end_lineno or node.lineno
    return line


def checked(rewritten: RewrittenModule) -> RewrittenModule:
    """The module, if all its edits landed; else raises EditError with every message."""
    if rewritten.errors:
        raise EditError("\n".join(rewritten.errors))
    return rewritten

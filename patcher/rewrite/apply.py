"""Applying one edit to one function's buffer."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from patcher.errors import EditError
from patcher.generated_names import RETURN_VARIABLE, WRAP_FUNCTION
from patcher.match.choose import Choice, FunctionScope, choose, is_whole_statement, sites_of
from patcher.match.function_text import CodeLine, FunctionBuffer, FunctionView, Kind, Line, ReturnHook, Wrap
from patcher.match.pattern import ARGUMENTS_CAPTURE, MATCH_CAPTURE, RETURN_CAPTURES, captured_names
from patcher.match.search import Site, find_lines
from patcher.match.statements import FunctionIndex, Statement, end_of, start_of
from patcher.plan.edits import Code, Dump, Edit, Step, Tags
from patcher.rewrite.entry import entry_line, indent_of, insert_at_entry, placed, set_apart
from patcher.rewrite.inserted_code import (
    config_code,
    config_expression,
    step_lines,
    tagged_lines,
    tap_lines,
    uses_capture,
    wrapping,
)
from patcher.rewrite.line_edits import edit_lines, syntax_error
from patcher.rewrite.splice import isolate, needs_isolation, replace_range, replace_statements
from patcher.rewrite.taps import InsertionPoint, TargetEdit


def apply_edit(scopes: Sequence[FunctionScope], what: TargetEdit, *, one_by_one: bool = False) -> list[int]:
    """Apply an edit; returns the original line of every place. Raises EditError when it does not land.

    Edits by lines are taken to make Python together with those that follow; with ``one_by_one`` an edit after which the
    function is not Python is looked for as a pattern.

    ``scopes`` are all definitions of the target (two in ``if …: def f … else: def f …``); the edit has to
    land as if they were one function, except that ``entry`` and ``return`` mean each of them.
    """
    edit = what.edit
    buffers = list({id(scope.buffer): scope.buffer for scope in scopes}.values())
    found = find_lines(buffers, edit.patterns[0]) if _may_mean_lines(scopes, edit) else []
    if len(found) == 1:
        buffer, matched = found[0]
        buffer.carry_out_wraps()
        if one_by_one:
            return _apply_to_lines(scopes, what, buffer, matched)
        edit_lines(buffer, matched, what)
        return [matched[0].origin]
    try:
        return _apply_by_syntax(scopes, what)
    except EditError as error:
        if not _may_mean_lines(scopes, edit):
            raise
        count = f"found multiple times ({len(found)})" if found else "not found"
        raise EditError(f"{error}\n  (as lines of text, it is {count})") from None


def _may_mean_lines(scopes: Sequence[FunctionScope], edit: Edit) -> bool:
    captures = isinstance(edit.content, Code) and captured_names(edit.content.text)
    return edit.by_lines and not captures and all(len(scope.path) == 1 for scope in scopes)


def _apply_to_lines(
    scopes: Sequence[FunctionScope], what: TargetEdit, buffer: FunctionBuffer, matched: list[Line]
) -> list[int]:
    was_python = syntax_error(buffer) is None
    put_back, taps = buffer.remember(), len(what.taps.taps)
    edit_lines(buffer, matched, what)
    if not was_python or syntax_error(buffer) is None:
        return [matched[0].origin]
    # Only together with edits that follow can it be Python again, unless the statement as a whole is meant.
    lines_of_edit = buffer.remember()
    names = what.taps.taps[taps:]
    what.taps.forget(taps)
    put_back()
    try:
        if _is_of_lines(scopes, what.edit, matched):
            return _apply_by_syntax(scopes, what)
    except EditError:
        what.taps.forget(taps)
    lines_of_edit()
    for tap in names:
        what.taps.add(tap)
    return [matched[0].origin]


def _is_of_lines(scopes: Sequence[FunctionScope], edit: Edit, matched: Sequence[Line]) -> bool:
    """Whether the pattern means just these lines, or an insertion before or after the statement that begins there."""
    for scope, choice in choose(scopes, edit):
        index, sites = _found(scope, edit, choice)
        for number in choice.numbers:
            first = index.view.line_at(start_of(index.view, sites[number].first.node)[0])
            last = index.view.line_at(end_of(index.view, sites[number].last.node)[0])
            if first is not matched[0] or (edit.action == "replace" and last is not matched[-1]):
                return False
    return True


def _apply_by_syntax(scopes: Sequence[FunctionScope], what: TargetEdit) -> list[int]:
    edit = what.edit
    if edit.action == "replace":
        # What is replaced has to be all there.
        for scope in scopes:
            scope.buffer.carry_out_wraps()
    if edit.place == "entry":
        return [_at_entry(scope, what) for scope in scopes]
    lines: list[int] = []
    for scope, choice in choose(scopes, edit):
        lines.extend(_apply_at(scope, what, choice))
    return sorted(lines)


def _apply_at(scope: FunctionScope, what: TargetEdit, choice: Choice) -> list[int]:
    lines: list[int] = []
    if choice.end:
        lines.append(_hook_end(scope, what))
    _isolate_chosen(scope, what.edit, choice)
    index, sites = _found(scope, what.edit, choice)
    # From the last place to the first, so that earlier places stay where they were found: those that end before
    # anything that has changed, on lines of their own.
    changed_from = None
    for number in reversed(choice.numbers):
        overlaps = changed_from is not None and end_of(index.view, _last_node(sites[number]))[0] >= changed_from
        if overlaps and scope.index(inserted=choice.inserted) is not index:
            index, sites = _found(scope, what.edit, choice)
        lines.append(_apply_to_site(scope, index, sites[number], what))
        changed_from = start_of(index.view, sites[number].first.node)[0]
    return lines


def _last_node(site: Site) -> cst.CSTNode:
    return site.expression if site.expression is not None else site.last.node


def _isolate_chosen(scope: FunctionScope, edit: Edit, choice: Choice) -> None:
    """Set statements apart that share a line with others and must not."""
    while True:
        index, sites = _found(scope, edit, choice)
        crowded = [statement for number in choice.numbers if (statement := _crowded(edit, sites[number])) is not None]
        if not crowded:
            return
        if scope.buffer.wraps:
            scope.buffer.carry_out_wraps()
            continue
        # All of them by the same parse, from the last to the first; several of one line in as many rounds.
        by_line = {id(index.view.line_at(start_of(index.view, statement.node)[0])): statement for statement in crowded}
        for statement in sorted(by_line.values(), key=lambda one: start_of(index.view, one.node), reverse=True):
            isolate(scope.buffer, index.view, statement)


def _found(scope: FunctionScope, edit: Edit, choice: Choice) -> tuple[FunctionIndex, list[Site]]:
    index = scope.index(inserted=choice.inserted, edit=edit)
    return index, sites_of(index, edit, choice.pattern)


def _crowded(edit: Edit, site: Site) -> Statement | None:
    """A statement of the site that shares its line with others and has to be set apart first."""
    if isinstance(edit.content, Tags):
        candidates = [site.first, site.last]
    elif edit.action == "wrap" or (site.expression is not None and edit.action == "replace"):
        candidates = [site.first] if edit.action == "replace" and is_whole_statement(site) else []
    elif site.body_start is not None:
        candidates = [site.body_start.statements[0]]
    else:
        candidates = [site.first, site.last]
    return next((statement for statement in candidates if needs_isolation(statement)), None)


def _apply_to_site(scope: FunctionScope, index: FunctionIndex, site: Site, what: TargetEdit) -> int:
    view, edit = index.view, what.edit
    anchor = view.line_at(start_of(view, site.node)[0])
    point = what.at(anchor.origin, _captures(index, site, edit))
    if edit.place == "return":
        _hook_return(view, site, point)
    elif edit.action == "wrap" or _is_recorded_walrus(edit, site):
        _wrap(scope.buffer, view, site, point)
    elif edit.action == "replace":
        _replace(scope.buffer, index, site, point)
    else:
        _insert(scope.buffer, index, site, point)
    return anchor.origin


def _is_recorded_walrus(edit: Edit, site: Site) -> bool:
    return edit.place == "assign" and isinstance(site.expression, cst.NamedExpr) and isinstance(edit.content, Dump)


def _wrap(buffer: FunctionBuffer, view: FunctionView, site: Site, point: InsertionPoint) -> None:
    assert isinstance(point.edit.content, Dump)
    assert site.expression is not None
    before, after = wrapping(point.edit.content, point)
    if not isinstance(site.expression, _ATOMS):
        before, after = f"{before}(", f"){after}"
    position = view.range(site.expression)
    first, last = view.line_at(position.start.line), view.line_at(position.end.line)
    buffer.wraps.append(Wrap(first, position.start.column, last, position.end.column, before, after))


def _captures(index: FunctionIndex, site: Site, edit: Edit) -> dict[str, str]:
    view = index.view
    captures = {name: _as_operand(view, node) for name, node in site.bindings.items()}
    if edit.place == "return":
        captures.update(dict.fromkeys(RETURN_CAPTURES, RETURN_VARIABLE))
    elif site.expression is not None:
        captures[MATCH_CAPTURE] = _as_operand(view, site.expression)
    elif site.first is site.last and isinstance(site.first.node, cst.BaseSmallStatement):
        captures[MATCH_CAPTURE] = view.text_of(site.first.node)
    captures.setdefault(ARGUMENTS_CAPTURE, _arguments(index))
    return captures


def _arguments(index: FunctionIndex) -> str:
    """A dict of the function's arguments by name, as it is written in this release."""
    parameters = index.function.params
    names = [
        parameter.name.value
        for parameter in (*parameters.posonly_params, *parameters.params, *parameters.kwonly_params)
    ]
    more = [] if parameters.star_kwarg is None else [f"**{parameters.star_kwarg.name.value}"]
    return "{" + ", ".join([*more, *(f"{name!r}: {name}" for name in names)]) + "}"


_ATOMS = (
    cst.Name, cst.Attribute, cst.Call, cst.Subscript, cst.List, cst.Dict, cst.Set, cst.ListComp, cst.SetComp,
    cst.DictComp, cst.SimpleString,
)  # fmt: skip


def _as_operand(view: FunctionView, node: cst.CSTNode) -> str:
    text = view.text_of(node)
    return text if isinstance(node, _ATOMS) else f"({text})"


def _content_lines(point: InsertionPoint, default_value: str | None) -> list[CodeLine]:
    edit = point.edit
    if isinstance(edit.content, Dump):
        return tap_lines(edit.content, point, default_value)
    if isinstance(edit.content, Step):
        return step_lines(edit.content, point)
    assert isinstance(edit.content, Code)
    return config_code(edit.content, point)


def _kind(edit: Edit) -> Kind:
    return "inserted" if isinstance(edit.content, Code) else "generated"


def _at_entry(scope: FunctionScope, what: TargetEdit) -> int:
    index = set_apart(scope, 0)
    line = entry_line(index)
    point = what.at(line.origin, {ARGUMENTS_CAPTURE: _arguments(index)})
    insert_at_entry(scope.buffer, index, _content_lines(point, None), _kind(what.edit), point.owner)
    return line.origin


def _hook_return(view: FunctionView, site: Site, point: InsertionPoint) -> None:
    line = view.line_at(start_of(view, site.first.node)[0])
    line.returns.append(_hook(point))


def _hook_end(scope: FunctionScope, what: TargetEdit) -> int:
    index = set_apart(scope, -1)
    last = index.view.line_at(end_of(index.view, index.body.statements[-1].node)[0])
    captures = {**dict.fromkeys(RETURN_CAPTURES, RETURN_VARIABLE), ARGUMENTS_CAPTURE: _arguments(index)}
    hook = _hook(what.at(last.origin, captures))
    indent = indent_of(index.view, index.body.statements[0])
    value = [CodeLine(f"{RETURN_VARIABLE} = None")] if hook.needs_value else []
    position = _skip_after(scope.buffer, scope.buffer.lines.index(last) + 1, indent)
    while position < len(scope.buffer.lines) and scope.buffer.lines[position].role == "end":
        position += 1
    lines = placed([*value, *hook.lines], indent, last.origin, hook.kind, "end", hook.owner)
    scope.buffer.insert(position, lines)
    return last.origin


def _hook(point: InsertionPoint) -> ReturnHook:
    edit = point.edit
    if edit.action == "replace":
        raise EditError(f"{edit.origin}: use 'match: return ...' to replace a return statement")
    default = RETURN_VARIABLE if isinstance(edit.content, Dump) and edit.content.value is None else None
    lines = tuple(_content_lines(point, default))
    needs_value = default is not None or any(uses_capture(edit.content, name) for name in RETURN_CAPTURES)
    return ReturnHook(lines, _kind(edit), point.owner, needs_value)


def _insert(buffer: FunctionBuffer, index: FunctionIndex, site: Site, point: InsertionPoint) -> None:
    edit, owner = point.edit, point.owner
    view = index.view
    default = None
    if isinstance(edit.content, Dump) and edit.place == "assign":
        default = _assigned_text(edit)
    code = _content_lines(point, default)
    if site.body_start is not None:
        first = site.body_start.statements[0]
        line = view.line_at(start_of(view, first.node)[0])
        position = buffer.lines.index(line)
        while buffer.lines[position - 1].role == "before":
            position -= 1
        buffer.insert(position, placed(code, indent_of(view, first), line.origin, _kind(edit), "entry", owner))
        return
    indent = indent_of(view, site.first)
    if edit.action == "before":
        line = view.line_at(start_of(view, site.first.node)[0])
        position = buffer.lines.index(line)
        buffer.insert(position, placed(code, indent, line.origin, _kind(edit), "before", owner))
        return
    if isinstance(site.last.node, (cst.Return, cst.Raise, cst.Break, cst.Continue)):
        word = type(site.last.node).__name__.lower()
        raise EditError(
            f"{edit.origin}: code after '{word}' never runs; use 'before', 'wrap' the expression, or 'at: return'"
        )
    line = view.line_at(end_of(view, site.last.node)[0])
    position = _skip_after(buffer, buffer.lines.index(line) + 1, indent)
    buffer.insert(position, placed(code, indent, line.origin, _kind(edit), "after", owner))


def _skip_after(buffer: FunctionBuffer, position: int, indent: str) -> int:
    """Code after a statement goes after what earlier edits put after it: edits run in their order.

    What was put after an enclosing statement is less indented and stays behind.
    """
    while position < len(buffer.lines):
        line = buffer.lines[position]
        if line.role != "after" or len(line.indent) < len(indent):
            break
        position += 1
    return position


def _assigned_text(edit: Edit) -> str:
    return edit.patterns[0].strip()


def _replace(buffer: FunctionBuffer, index: FunctionIndex, site: Site, point: InsertionPoint) -> None:
    edit = point.edit
    view = index.view
    if isinstance(edit.content, Tags):
        statements = _text_of_statements(buffer, view, site)
        code = tagged_lines(edit.content, point, statements)
        replace_statements(buffer, view, site, code, indent_of(view, site.first), point.owner)
        return
    assert isinstance(edit.content, Code)
    if site.expression is not None and not is_whole_statement(site):
        new = config_expression(edit.content, point)
        if new is None:
            raise EditError(
                f"{edit.content.origin}: the pattern matches an expression within a statement, so an expression "
                f"has to replace it, not {edit.content.text.strip()!r}"
            )
        _refuse_lost_wraps(point, view.text_of(site.expression), new)
        replace_range(buffer, view, site.first, site.expression, f"({new})")
        return
    code = config_code(edit.content, point) if edit.content.text.strip() else []
    _refuse_lost_wraps(point, _text_of_statements(buffer, view, site), "\n".join(line.text for line in code))
    if not code and len(site.first.block.statements) == site.last.index - site.first.index + 1:
        code = [CodeLine("pass")]
    replace_statements(buffer, view, site, code, indent_of(view, site.first), point.owner)


def _refuse_lost_wraps(point: InsertionPoint, old: str, new: str) -> None:
    if new.count(WRAP_FUNCTION) < old.count(WRAP_FUNCTION):
        raise EditError(
            f"{point.owner} would replace code in which an earlier edit has put a tap; put the replacing edit before it"
        )


def _text_of_statements(buffer: FunctionBuffer, view: FunctionView, site: Site) -> str:
    """Whole lines from the first statement of a site to its last, without their common indentation."""
    first = buffer.lines.index(view.line_at(start_of(view, site.first.node)[0]))
    last = buffer.lines.index(view.line_at(end_of(view, site.last.node)[0]))
    indent = indent_of(view, site.first)
    return "\n".join(line.text.removeprefix(indent) for line in buffer.lines[first : last + 1])

"""Compiling a rewritten module so that it looks like the original to tracebacks, ``inspect`` and profilers.

Only the rewritten functions are parsed anew; their nodes take the place of the original ones in the tree of the
original source, with the original's line numbers.
"""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType
from typing import Any, TypeGuard, TypeVar

from patcher.config.load import configs_from_json
from patcher.errors import PatchError
from patcher.generated_names import WRAP_FUNCTION
from patcher.match.function_text import Line
from patcher.plan.planner import Plan, make_plan, plan_module
from patcher.rewrite.module import RewrittenFunction, RewrittenModule, checked, rewrite_module
from patcher.source.modules import ModuleFile, ModuleFinder, decode


def compile_patched(configs_json: str, module: str, file: str, data: bytes, script: bool = False) -> CodeType:
    """Rewrite and compile a module, perhaps to be run as a script. Raises PatchError when an edit does not land."""
    rewritten = _rewritten(configs_json, module, file, data)
    if script:
        # As in a script that the interpreter runs by its path; multiprocessing goes by it.
        rewritten = replace(rewritten, prelude=(*rewritten.prelude, "__spec__ = __package__ = __cached__ = None"))
    return compile_module(rewritten, file)


def compile_late(configs_json: str, module: str, file: str, data: bytes) -> CodeType | None:
    """Rewrite and compile a module that came into being after the check, None when nothing in it is a target.

    Raises PatchError when an edit does not land.
    """
    source = ModuleFile.from_bytes(module, file, data)
    patch = plan_module(configs_from_json(configs_json), source, ModuleFinder())
    if patch is None:
        return None
    return compile_module(checked(rewrite_module(source.source, patch, file)), file)


def patched_tree(configs_json: str, module: str, file: str, data: bytes) -> ast.Module:
    """Syntax tree of a rewritten module. Raises PatchError when an edit does not land."""
    return module_tree(_rewritten(configs_json, module, file, data))


def _rewritten(configs_json: str, module: str, file: str, data: bytes) -> RewrittenModule:
    patch = next((patch for patch in _plan(configs_json).modules if patch.module == module), None)
    if patch is None:
        # Not to be found by its name here: it is loaded by its path.
        patch = plan_module(configs_from_json(configs_json), ModuleFile.from_bytes(module, file, data), ModuleFinder())
    if patch is None:
        raise PatchError("the configs name nothing in it here; was the command checked with another Python?")
    return checked(rewrite_module(decode(data, file), patch, file))


@lru_cache(maxsize=4)
def _plan(configs_json: str) -> Plan:
    return make_plan(configs_from_json(configs_json), ModuleFinder())


@dataclass(frozen=True)
class CodeKey:
    """What a function's code and its rewritten code have in common: name and first line."""

    name: str
    line: int

    @classmethod
    def of(cls, code: types.CodeType) -> CodeKey:
        """Key of a code object."""
        return cls(code.co_name, code.co_firstlineno)


def compile_module(
    module: RewrittenModule, filename: str, captured: Mapping[CodeKey, Sequence[str]] | None = None
) -> types.CodeType:
    """Code object of the module, as if compiled from ``filename``.

    ``captured`` names, per function, variables of enclosing functions that it has to go on capturing although
    its new code may not use them, because the closure of a live function cannot change.
    """
    tree = module_tree(module)
    if captured and any(captured.values()):
        tree = copy.deepcopy(tree)
        _keep_captured(tree, captured)
    return compile(tree, filename, "exec", dont_inherit=True)


def _keep_captured(tree: ast.Module, captured: Mapping[CodeKey, Sequence[str]]) -> None:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        names = captured.get(CodeKey(node.name, first), ())
        if names:
            # Never executed and not even compiled; the names count as used all the same.
            use = ast.If(ast.Constant(0), [ast.Expr(ast.Name(name, ast.Load())) for name in names], [])
            last = node.body[-1]
            for part in ast.walk(use):
                ast.copy_location(part, last)
            node.body.append(use)


def module_tree(module: RewrittenModule) -> ast.Module:
    """Syntax tree of the rewritten module with the line numbers of the original."""
    source_lines = module.source.split("\n")
    new = {id(function.node): _function_tree(function, source_lines) for function in module.functions}
    tree = _Replace(new).visit(module.tree)
    assert isinstance(tree, ast.Module)
    prelude = ast.parse("\n".join(module.prelude)).body
    line = max(module.prelude_line, 1)
    for node in prelude:
        for part in ast.walk(node):
            _place(part, (line, 0), (line, 0))
    position = sum(1 for node in tree.body if (node.end_lineno or node.lineno) <= module.prelude_line)
    return ast.Module([*tree.body[:position], *prelude, *tree.body[position:]], tree.type_ignores)


class _Replace:
    """Exchanges function nodes, by identity, in the bodies of modules, classes and blocks."""

    def __init__(self, new: dict[int, ast.stmt]) -> None:
        self.new = new

    def visit(self, node: Any) -> Any:
        if id(node) in self.new:
            return self.new[id(node)]
        changes: dict[str, list[Any]] = {}
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            children = getattr(node, name, None)
            if isinstance(children, list):
                visited = [self.visit(child) for child in children]
                if any(new is not old for new, old in zip(visited, children, strict=True)):
                    changes[name] = visited
        if not changes:
            return node
        changed = copy.copy(node)
        for name, children in changes.items():
            setattr(changed, name, children)
        return changed


def _function_tree(function: RewrittenFunction, source_lines: Sequence[str]) -> ast.stmt:
    indented = function.lines[0].text[:1].isspace()
    text = ("if True:\n" if indented else "") + "\n".join(line.text for line in function.lines) + "\n"
    node: Any = ast.parse(text).body[0]
    if indented:
        node = node.body[0]
    shift = 2 if indented else 1
    parts: list[Any] = [part for part in ast.walk(node) if hasattr(part, "lineno")]
    for part in parts:
        _place(
            part,
            _original(function.lines[part.lineno - shift], part.col_offset, source_lines, end=False),
            _original(function.lines[part.end_lineno - shift], part.end_col_offset, source_lines, end=True),
        )
    # By its name and first line a function is found again, also where an edit took its first decorator away.
    min([*node.decorator_list, node], key=lambda part: part.lineno).lineno = function.first
    inlined: ast.stmt = _InlineWraps().visit(node)
    return inlined


def _original(line: Line, column: int, source_lines: Sequence[str], *, end: bool) -> tuple[int, int]:
    """Line and column in the original; of changed lines the whole line, so that no caret points astray."""
    if line.columns_kept:
        return line.origin, column
    text = source_lines[line.origin - 1]
    indent = len(text) - len(text.lstrip())
    return line.origin, len(text.rstrip().encode()) if end else indent


def _place(node: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    if not hasattr(node, "lineno"):
        return
    end = max(start, end)
    node.lineno, node.col_offset = start
    node.end_lineno, node.end_col_offset = end


class _InlineWraps(ast.NodeTransformer):
    """``wrap(tap, value, record)`` becomes ``wrap(tap, value, record) if tap.on else value``.

    It means the same, and a tap that is off then costs no call. Where values that are wrapped are parts of each other,
    the outermost is treated so: what is evaluated while all their taps are off has none of them. So there is every
    value twice, however deep they are nested.
    """

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not _is_wrap(node):
            return self.generic_visit(node)
        tap, value, record = node.args
        assert isinstance(record, ast.Lambda)
        # The expressions of a tap may repeat code of the target, but do not record it again.
        record.body = _without_wraps(record.body, [])
        taps: list[ast.expr] = [tap]
        # A copy, because the compiler tells scopes (lambdas, comprehensions) apart by node.
        plain = _without_wraps(value, taps)
        tests: list[ast.expr] = [
            ast.copy_location(ast.Attribute(copy.deepcopy(inner), "on", ast.Load()), node) for inner in taps
        ]
        test = tests[0] if len(tests) == 1 else ast.copy_location(ast.BoolOp(ast.Or(), tests), node)
        return ast.copy_location(ast.IfExp(test, node, plain), node)


_SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_Node = TypeVar("_Node", bound=ast.AST)


def _without_wraps(node: _Node, taps: list[ast.expr]) -> _Node:
    """A copy without wraps, whose taps go to the end of ``taps``.

    Those in scopes that run at another time, such as lambdas, stay: taps may be on by then.
    """
    found: Any = node
    while _is_wrap(found):
        taps.append(found.args[0])
        found = found.args[1]
    if isinstance(found, _SCOPES):
        return copy.deepcopy(found)  # type: ignore[return-value]
    new = copy.copy(found)
    for name, value in ast.iter_fields(found):
        if isinstance(value, ast.AST):
            setattr(new, name, _without_wraps(value, taps))
        elif isinstance(value, list):
            setattr(new, name, [_without_wraps(one, taps) if isinstance(one, ast.AST) else one for one in value])
    return new  # type: ignore[no-any-return]


def _is_wrap(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == WRAP_FUNCTION

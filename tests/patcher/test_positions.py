"""Nodes are where libcst itself says that they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import libcst as cst
import pytest
from hypothesis import given, settings
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from patcher.match.function_text import FunctionBuffer, FunctionView
from patcher.match.statements import index_function
from tests.patcher.test_properties import functions

SOURCE = '''
class Net:
    @staticmethod  # of one
    # and another
    @decorated(a, [b, "ö"])

    async def f(
        self, x: int = g(1), *, y=[2]
    ) -> int:
        """Dß."""
        é = "ü" + g(x); y = h(é)   ;
        if (
            x  # first
            # own line
            and y
        ): a = g("ä", [x for x in y if x])
        elif "ß" and g(é): pass
        # comment
        elif y:
            z = (yield x), (await y)
        else:
          z = 1; w = 2
        try:
            async with a as b, (c) as d: e
        except (A, g(B)) as error:
            pass
        except C:
            raise D(f"{x!r:>{y}}") from E
        else:
            del a[1], b.c
        finally:
            x: Net.g[1] = lambda q=g(2), *r: q
        while (y := g(y)): continue
        for i, (j, k) in zip(
            x, y
        ):
            def inner(o=g(3)):
                return g(o) + \\
                    o
        else:
            assert x, "ö"; return not x
        match g(x):
            case [1, q] if g(q):
                g(q)
'''


def nodes_of(view: FunctionView, path: tuple[str, ...]) -> Iterator[cst.CSTNode]:
    index = index_function(view, view.find_function(path))
    for statement in index.in_order:
        yield statement.node
        yield from getattr(statement.node, "decorators", ())
    yield from (node for node, _ in index.expressions)
    yield from (node for node, _ in index.branches)


def function_view(source: str, name: str) -> FunctionView:
    found = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name
    )
    first = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
    return FunctionBuffer.from_source(source.split("\n"), first, found.end_lineno or 0).view()


def check(view: FunctionView) -> None:
    theirs = PositionProvider()._gen(MetadataWrapper(view.module, unsafe_skip_copy=True))
    for node in nodes_of(view, ("f",)):
        expected = theirs[node]
        assert isinstance(expected, CodeRange)
        assert view.range(node) == expected, view.module.code_for_node(node)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(functions())
def test_positions_of_generated_functions(source: str) -> None:
    check(function_view(source, "f"))


def test_positions_in_all_kinds_of_statements() -> None:
    check(function_view(SOURCE, "f"))


def test_an_expression_is_found_without_writing_out_the_whole_function(monkeypatch: pytest.MonkeyPatch) -> None:
    view = function_view("def f(x):\n    if g(x):\n        y = h(x)\n    return y\n", "f")
    index = index_function(view, view.find_function(("f",)))
    monkeypatch.setattr(cst.Return, "_codegen_impl", lambda *_: pytest.fail("the other statements are not written out"))
    assert {view.range(node).start.column for node, _ in index.expressions if isinstance(node, cst.Call)} == {7, 12}

"""Edits that share a parse give the text that they give one after the other."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patcher.config.yaml_source import Origin
from patcher.match.function_text import FunctionBuffer
from patcher.plan.edits import Code, ConfigTexts, Dump, Edit, FunctionPatch, ModulePatch, Tags
from patcher.rewrite.module import RewrittenModule, rewrite_module
from tests.patcher.test_properties import functions

ORIGIN = Origin("taps.yaml", 1)
ACTIONS = ("replace", "replace", "replace", "delete", "tags", "before", "after", "dump", "wrap")


@st.composite
def edited(draw: st.DrawFn) -> tuple[str, list[Edit]]:
    source = draw(functions())
    function = ast.parse(source).body[-1]
    simple = (ast.Assign, ast.AugAssign, ast.Expr, ast.Return)
    pieces = [node for node in ast.walk(function) if isinstance(node, (ast.Call, ast.BinOp, *simple))]
    edits: list[Edit] = []
    for number in range(1, draw(st.integers(2, 7)) + 1):
        node = draw(st.sampled_from(pieces))
        action: Any = draw(st.sampled_from(ACTIONS))
        new = draw(st.sampled_from(["g(k)", "a + g(b)", "h(n)", "lambda q: g(q)"]))
        content: Any = Code(new if isinstance(node, ast.expr) else f"a = {new}", ORIGIN)
        if action == "delete":
            action, content = "replace", Code("", ORIGIN)
        elif action == "tags":
            action, content = "replace", Tags((("layer_id", Code("1", ORIGIN)),))
        elif action in ("dump", "wrap"):
            content = Dump(f"tap{number}", value=Code("b", ORIGIN))
            action = "after" if action == "dump" else "wrap"
        nth: Any = draw(st.sampled_from([None, "all", 1, -1]))
        edits.append(Edit(number, ORIGIN, "match", (ast.unparse(node),), action, content, nth, undefined=("*",)))
    return source, edits


def rewritten(source: str, edits: list[Edit]) -> RewrittenModule:
    patch = FunctionPatch("mod.f", "mod", ("f",), (), tuple(edits))
    return rewrite_module(source, ModulePatch("mod", (patch,), ConfigTexts((), (), "")), "mod.py")


@settings(derandomize=True, max_examples=60, deadline=None)
@given(edited())
def test_edits_that_share_a_parse_mean_what_they_mean_alone(made: tuple[str, list[Edit]]) -> None:
    together = rewritten(*made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FunctionBuffer, "rewrote", lambda self, old, new: self.changed())
        in_turn = rewritten(*made)
    assert together.text == in_turn.text
    assert together.landings == in_turn.landings
    assert together.taps == in_turn.taps


def test_statements_of_one_line_that_are_edited_one_after_the_other() -> None:
    edits = [
        Edit(number, ORIGIN, "match", (pattern,), "replace", Code(new, ORIGIN), undefined=("*",))
        for number, (pattern, new) in enumerate((("g(1)", "first(1)"), ("h(2)", "second(2)"), ("k(3)", "z")), start=1)
    ]
    source = "def f():\n    x = g(1); y = h(2)\n    if x: z = k(3)\n    return z\n"
    assert "    x = (first(1)); y = (second(2))\n    if x: z = (z)\n" in rewritten(source, edits).text

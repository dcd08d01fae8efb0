"""Edits that are refused, and what stays of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.patcher.support import edit, errors

SOURCE = """
    def f(x, layer):
        y = layer.norm(x)
        return y
"""


def test_replacing_code_that_holds_a_tap_is_refused(tmp_path: Path) -> None:
    source = "def f(x):\n    if x:\n        y = g(x)\n    return y\n"
    message = errors(
        tmp_path,
        source,
        """
        - {match: y = g(x), dump: {name: y, value: y}}
        - {match: "if x: ...", replace: y = 1}
        """,
    )
    assert "mod.f#2 would replace code in which mod.f#1 has put a tap" in message


def test_code_after_a_return_is_refused(tmp_path: Path) -> None:
    message = errors(tmp_path, "def f(x):\n    return g(x)\n", "- {match: g(x), after: note()}")
    assert message.startswith("taps.yaml:4: code after 'return' never runs")


def test_nth_beyond_the_last_lists_the_places(tmp_path: Path) -> None:
    message = errors(tmp_path, "def f(x):\n    g(x)\n    g(x)\n", "- {match: g(x), nth: 3, before: note()}")
    assert "is found only twice" in message
    assert "1. line 2: g(x)" in message


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("{at: entry, dump: {name: x, value: a, dim: t h}}", "taps.yaml:4: 't h' is not a Python expression"),
        (
            "{at: entry, dump: {name: x, value: a, dim: t h}}",
            "the value of the tag 'dim'; did you mean the key 'dims'?",
        ),
        ("{at: entry, step: {layer: 1 +}}", "(the tag 'layer')"),
        ("{match: return a, tags: {layer: '}'}}", "(the tag 'layer')"),
        ('{at: entry, before: \'dumper.dump("x", a, dims="t h[tp")\'}', "taps.yaml:4: dims 't h[tp' leave a bracket"),
    ],
)
def test_tags_and_dims_are_checked(tmp_path: Path, edit: str, message: str) -> None:
    assert message in errors(tmp_path, "def f(a):\n    return a\n", f"- {edit}")


def test_nothing_stays_of_an_optional_edit_that_fails_at_one_of_its_places(tmp_path: Path) -> None:
    source = "def f(a):\n    g(a)\n    return g(a)\n"
    first = "- {match: g(...), nth: all, after: {name: b, value: a}, optional: true}"
    assert edit(tmp_path, source, first) == source


@pytest.mark.parametrize("change", ["match: 'h($X, $Y)', replace: k($X)", "match: 'return h(...)', replace: return 1"])
def test_code_that_holds_a_wrapped_value_is_not_replaced(tmp_path: Path, change: str) -> None:
    source = "def f(a):\n    return h(g(a), a)\n"
    wrap = "- {wrap: g(...), dump: {name: g}}"
    assert "would replace code in which an earlier edit has put a tap" in errors(
        tmp_path, source, f"{wrap}\n- {{{change}}}"
    )


@pytest.mark.parametrize(
    ("keyword", "meant"), [("dim", "dims"), ("levels", "level"), ("dims_grads", "dims_grad"), ("grads", "grad")]
)
def test_a_keyword_of_a_dump_call_that_is_nearly_one(tmp_path: Path, keyword: str, meant: str) -> None:
    call = f"dumper.dump('y', y, {keyword}='t')"
    message = errors(tmp_path, SOURCE, f'- {{match: y = layer.norm(...), after: "{call}"}}')
    assert f"{keyword!r} for a tag; did you mean {meant!r}?" in message


def test_tags_of_a_dump_call_may_be_called_anything_else(tmp_path: Path) -> None:
    call = "dumper.dump('y', y, dims='t', layer=1, dimension=2, kind=3, stage=4, save=True, step=5, **{'dim': 6})"
    assert "layer=1" in edit(tmp_path, SOURCE, f'- {{match: y = layer.norm(...), after: "{call}"}}')

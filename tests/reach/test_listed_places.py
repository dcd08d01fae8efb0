"""Every place that ``patcher list`` prints lands when it is pasted, and every suggestion can be used as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patcher.check import check_loaded
from patcher.cli import main
from patcher.config.load import parse_config
from patcher.source.modules import ModuleFinder

names = st.sampled_from(["a", "b", "f", "self", "x"])


def expressions(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, inner, inner).map("({0[0]} if {0[1]} else {0[2]})".format),
        st.tuples(inner, inner).map("({0[0]} or {0[1]})".format),
        st.tuples(inner, inner).map("({0[0]} + {0[1]})".format),
        inner.map("(lambda v: {})".format),
        inner.map("(yes := {})".format),
        inner.map("[{}]".format),
        inner.map("{}.part".format),
        inner.map("{}[0]".format),
        inner.map("(-{})".format),
        st.tuples(inner, inner).map("{0[0]}({0[1]})".format),
        st.tuples(inner, inner).map("{0[0]}(key={0[1]}, *x)".format),
        inner.map("(\n        {}\n    )".format),
        inner.map("f'{{{}}}'".format) if False else inner,
    )


code = st.recursive(names, expressions, max_leaves=8)
statements = st.one_of(
    code.map("    {}".format),
    code.map("    y = {}".format),
    code.map("    y, z = {}".format),
    code.map("    y: int = {}".format),
    code.map("    return {}".format),
    code.map("    if {}:\n        pass".format),
    code.map("    for i in {}:\n        pass".format),
)


def listed(capsys: pytest.CaptureFixture[str], folder: Path, target: str) -> list[dict[str, Any]]:
    assert main(["list", target, "--source", str(folder), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)[0]["places"]
    return found


@given(body=st.lists(statements, min_size=1, max_size=4))
def test_what_is_listed_lands(tmp_path_factory: pytest.TempPathFactory, body: list[str]) -> None:
    folder = tmp_path_factory.mktemp("listed")
    (folder / "listed_module.py").write_text("def g(self, a, b, f, x):\n" + "\n".join(body) + "\n")
    from patcher.tappable import function_index, tappable_places

    finder = ModuleFinder([folder], [])
    module = finder.find("listed_module")
    assert module is not None
    edits = []
    for place in tappable_places(function_index(module, ["g"])):
        edit = {place.form: place.pattern, "dump": {"name": "tap", "value": "1"}}
        edits.append(edit if place.form == "at" else {**edit, "nth": place.nth or "all"})
    config = json.dumps({"patches": [{"target": "listed_module.g", "edits": edits}]})
    found = check_loaded([parse_config(config, "listed.yaml")], finder)
    assert found.ok, "\n".join(found.errors)


def test_a_called_expression_in_brackets_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy.py").write_text("def f(a, b, x):\n    y = (a.info if b else a.warning)(x)\n    return y\n")
    places = listed(capsys, tmp_path, "toy.f")
    assert [place["pattern"] for place in places if place["kind"] == "call"] == [
        "y = (a.info if b else a.warning)(...)"
    ]

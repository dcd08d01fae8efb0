"""Edits in SGLang's form mean lines, as they do there: SGLang's own source patcher is asked."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patcher.config.load import parse_config
from patcher.errors import PatchError
from patcher.plan.planner import plan_module
from patcher.rewrite.module import checked, rewrite_module
from patcher.source.modules import ModuleFile, ModuleFinder
from tests.differential.sglang_configs import Edits, compare_configs, configs_in, load_editor
from tests.patcher.support import block, edit, errors, rewrite
from tests.patcher.test_properties import functions

SOURCE = '''
@first
@second(1)
def f(
    x,
    layer=None,
):
    """Doc."""
    # before the call
    y = g(
        x,
        k=1,
    )
    names = [
        "a",
        "b",  # last
    ]
    table = {
        "k": x,
    }
    if (
        y
        and x
    ):
        z = g(y, k=2)
    elif x:
        z = h(x)
    else:
        z = y
    try:
        for a, b in table.items():
            h(b)
    except ValueError as error:
        z = g(0)
    except (KeyError, TypeError):
        z = g(1)
    finally:
        log.append(z)
    with manager(z) as c:
        text = """
            two lines"""
    total = (
        c
        + z
    )
    return total
'''


@pytest.fixture(scope="module")
def theirs() -> Callable[[str, Edits], str]:
    """SGLang's function."""
    found = load_editor()
    if found is None:
        pytest.skip("sglang is not installed: there is nobody to compare with")
    return found


def ours(function: str, edits: Edits, before: str = "") -> str:
    """The function after the edits. Raises PatchError."""
    source = before + function
    config = yaml.safe_dump({"patches": [{"target": "mod.f", "edits": list(edits), "undefined": True}]})
    module = ModuleFile.from_bytes("mod", "mod.py", source.encode())
    patch = plan_module([parse_config(config, "taps.yaml")], module, ModuleFinder())
    assert patch is not None
    rewritten = checked(rewrite_module(source, patch, "mod.py"))
    lines = rewritten.text.split("\n")
    del lines[rewritten.prelude_line : rewritten.prelude_line + len(rewritten.prelude)]
    return "\n".join(lines).removeprefix(before)


def is_function(text: str) -> bool:
    try:
        body = compile(text, "<edited>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True).body  # type: ignore[attr-defined]
        compile(text, "<edited>", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return len(body) == 1 and getattr(body[0], "name", "") == "f"


@pytest.mark.parametrize(
    "edits",
    [
        [{"match": "y = g(", "append": "2,"}],
        [{"match": "x,\nk=1,", "replacement": "x,\nk=2,"}],
        [{"match": "k=1,", "append": "**more,"}],
        [{"match": "k=1,", "prepend": "# a comment\nq=3,"}],
        [{"match": '"a",', "append": '"between",'}],
        [{"match": '"b",  # last', "replacement": ""}],
        [{"match": '"k": x,', "append": '"l": y,'}],
        [{"match": "and x", "append": "or layer"}],
        [{"match": "elif x:", "replacement": "elif not x:"}],
        [{"match": "elif x:", "prepend": "elif y > 2:\n    z = 7"}],
        [{"match": "else:", "replacement": "elif layer:\n    z = 3\nelse:"}],
        [{"match": "except ValueError as error:", "replacement": "except (ValueError, OSError) as error:"}],
        [{"match": "except (KeyError, TypeError):", "prepend": "except LookupError:\n    z = 2"}],
        [{"match": "finally:", "prepend": "else:\n    z = 5"}],
        [{"match": "for a, b in table.items():", "replacement": "for a, b in sorted(table.items()):"}],
        [{"match": "with manager(z) as c:", "replacement": "if (c := z):"}],
        [{"match": "# before the call", "append": "x = x + 1"}],
        [{"match": "# before the call", "replacement": "# another"}],
        [{"match": "layer=None,", "append": "more=(),"}],
        [{"match": "def f(", "append": "    self,"}],
        [{"match": "@second(1)", "replacement": ""}],
        [{"match": "@first", "prepend": "@zeroth"}],
        [{"match": "+ z", "append": "+ 1"}],
        [{"match": "two lines\"\"\"", "replacement": "three\nlines\"\"\""}],
        [{"match": "return total", "append": "never()"}],
        [{"match": "z = y", "append": "first()"}, {"match": "z = y", "append": "second()"}],
        [{"match": "z = y", "prepend": "first()"}, {"match": "z = y", "prepend": "second()"}],
        [{"match": "z = y", "prepend": "first()"}, {"match": "first()", "append": "second()"}],
        [{"match": "total = (", "replacement": "total = h("}, {"match": "+ z", "append": "+ 1,"}],
        [{"match": "if (", "replacement": "while ("}, {"match": "elif x:\nz = h(x)", "replacement": ""}],
        [{"match": "try:", "replacement": "with h():"}, {"match": "except ValueError as error:\nz = g(0)",
          "replacement": ""}, {"match": "except (KeyError, TypeError):\nz = g(1)", "replacement": ""},
         {"match": "finally:", "replacement": "if z:"}],
        [{"match": "for a, b in table.items():\n    h(b)", "replacement": "h(table)"}],
        [{"match": "for a, b in table.items():\n  h(b)", "append": "h(z)"}],
    ],
    ids=lambda edits: "; ".join(edit["match"].splitlines()[0] for edit in edits),
)  # fmt: skip
def test_edits_of_parts_of_statements(theirs: Callable[[str, Edits], str], edits: Edits) -> None:
    expected = theirs(SOURCE, edits)
    assert is_function(expected)
    assert ours(SOURCE, edits) == expected


CODE = st.sampled_from(
    [
        "log.append(1)",
        "if a:\n    b = 1",
        "2,",
        "else:",
        "# a comment",
        "pass",
        "b = g(\n    a,\n)",
        "+ 1",
        ")",
        "c = '''\nd'''",
    ]
)


@st.composite
def line_edits(draw: st.DrawFn, source: str) -> list[dict[str, str]]:
    lines = [line for line in source.strip("\n").splitlines() if line.strip()]
    edits: list[dict[str, str]] = []
    for _ in range(draw(st.integers(1, 4))):
        start, count = draw(st.integers(0, len(lines) - 1)), draw(st.integers(1, 3))
        action = draw(st.sampled_from(["prepend", "append", "replacement"]))
        text = textwrap.dedent("\n".join(lines[start : start + count]))
        edits.append({"match": text, action: draw(CODE)})
    return edits


@settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_text_is_that_of_sglang(theirs: Callable[[str, Edits], str], data: st.DataObject) -> None:
    _, _, function = data.draw(functions()).rpartition("\ndef f")
    source = data.draw(st.sampled_from([SOURCE, "def f" + function]))
    edits = data.draw(line_edits(source))
    try:
        expected = theirs(source, edits)
    except LookupError:
        return
    if is_function(expected):
        assert ours(source, edits) == expected
    else:
        with contextlib.suppress(PatchError):
            assert is_function(ours(source, edits))


def test_a_result_that_is_no_python_names_the_edit_and_the_line(tmp_path: Path) -> None:
    source = "def f(x):\n    y = g(\n        x,\n    )\n    return y\n"
    message = errors(tmp_path, source, '- {match: "x,", append: "2 3,"}')
    assert "taps.yaml:4" in message
    assert "invalid syntax" in message
    assert "line 3, '2 3,'" in message
    message = errors(tmp_path, source, '- {match: ")", replacement: ""}')
    assert "taps.yaml:4" in message
    assert "'(' was never closed: line 2, 'y = g('" in message
    assert "a function called 'f'" in errors(tmp_path, source, '- {match: "def f(x):", replacement: "def g(x):"}')


def test_other_edits_after_half_a_statement(tmp_path: Path) -> None:
    source = "def f(x):\n    y = g(\n        x,\n    )\n    return y\n"
    edits = """
        - {match: "y = g(", replacement: "y = h(g("}
        - {match: "y = h(...)", dump: {name: y, value: y}}
        """
    assert "#1" in errors(tmp_path, source, edits)
    assert "is not after the edits by lines" in errors(tmp_path, source, edits)
    whole = """
        - {match: "y = g(", replacement: "y = h("}
        - {match: "x,", append: "2,"}
        - {match: "y = h(x, 2)", dump: {name: y, value: y}}
        """
    assert "value=" not in edit(tmp_path, source, whole)


def test_lines_that_stand_nowhere_or_twice_are_looked_for_as_python(tmp_path: Path) -> None:
    source = "def f(x):\n    y = g(x)\n    z = '''\n    y = g(x)\n    '''\n    return y\n"
    assert "    y = g(x)\n    h()\n    z" in edit(tmp_path, source, '- {match: "y = g(x)", append: h()}')
    assert "    h()\n    y = g(x)\n    z" in edit(tmp_path, source, '- {match: "y  =  g(...)", prepend: h()}')
    assert "as lines of text, it is not found" in errors(tmp_path, source, '- {match: "y = k(x)", append: h()}')


def test_after_a_whole_block_where_lines_make_no_sense(tmp_path: Path) -> None:
    source = "def f(x):\n    if x:\n        y = 1\n    return x\n"
    assert edit(tmp_path, source, '- {match: "if x:", append: g(x)}') == block("""
        def f(x):
            if x:
                y = 1
            g(x)
            return x
    """)
    assert "pass" in edit(tmp_path, source, '- {match: "y = 1", replacement: ""}')


def test_taps_in_half_a_statement_and_preambles(tmp_path: Path) -> None:
    source = "def f(\n    x,\n):\n    y = [\n        x,\n    ]\n    return y\n"
    config = """
    patches:
      - target: mod.f
        preamble: import math
        edits:
          - {match: "):", replacement: "    *more):"}
          - {match: "y = [", replacement: "y = dumper.h(["}
          - {match: "]", replacement: "])"}
    """
    text = rewrite(tmp_path, source, config)
    assert "*more):\n    import math\n    y = " in text
    assert "    y = __tensortap_dumper__.h([\n        x,\n    ])\n" in text


def test_the_configs_that_sglang_itself_comes_with(theirs: Callable[[str, Edits], str]) -> None:
    """Those that take back fixes, in the installed release; they edit its own functions."""
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.submodule_search_locations is not None
    texts = configs_in(Path(package.submodule_search_locations[0], "srt/debug_utils/pr_fix_toggle.py"))
    compared = [one for text in texts for one in compare_configs(text, theirs)]
    assert sum(one.theirs is not None for one in compared) >= 5
    for one in compared:
        assert one.theirs is None or one.ours == one.theirs, one.target

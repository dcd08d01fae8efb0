"""What a pattern matches, what it does not, and which of several places an edit takes."""

from __future__ import annotations

import ast
from pathlib import Path

import libcst as cst
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patcher.errors import EditError
from patcher.match.matcher import flatten, match_expression, match_statements
from patcher.match.pattern import parse_pattern, substitute
from tests.patcher.support import edit


def matches(pattern: str, code: str) -> dict[str, str] | None:
    """Captured texts when a pattern matches the whole of some code, else None."""
    parsed = parse_pattern(pattern)
    module = cst.parse_module(code + "\n")
    if parsed.kind == "expression":
        (statement,) = flatten(module.body)
        assert isinstance(statement, cst.Expr)
        bound = match_expression(parsed, statement.value)
    else:
        block = flatten(module.body)
        found = match_statements(parsed, block, 0)
        bound = found[1] if found is not None and found[0] == len(block) else None
    return None if bound is None else {name: module.code_for_node(node).strip() for name, node in bound.items()}


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("f(a, b)", "f( a,\n  b,  # last\n)"),
        ("f(a)", "(f)((a))"),
        ("f(a, b=1, c=2)", "f(a, c=2, b=1)"),
        ("f(...)", "f()"),
        ("f(...)", "f(1, *a, k=2, **b)"),
        ("f(a, ...)", "f(a)"),
        ("f(a, ..., z)", "f(a, b, c, z)"),
        ("f(..., k=1)", "f(a, k=1, j=2)"),
        ("f(k=1, ...)", "f(a, j=2, k=1)"),
        ("f(k=1, ...)", "f(k=1)"),
        ("f(**...)", "f(**a)"),
        ("x[...]", "x[1, :, ...]"),
        ("x[a, b]", "x[(a, b)]"),
        ("x[..., 0]", "x[:, 1, 0]"),
        ("[a, ...]", "[a, b, c]"),
        ("'text'", '"text"'),
        ("'ab'", "'a' 'b'"),
        ("0x10", "16"),
        ("a, b = f()", "(a, b) = f()"),
        ("a, b = ...", "a, b = x if y else z"),
        ("x = f()", "x: Tensor = f()"),
        ("if x: ...", "if (x):\n    a\n    b"),
        ("if x:", "if x:\n    a\nelif y:\n    b"),
        ("if x: ...\nelse: ...", "if x: a"),
        ("if x:\n  a\n  ...\n  c", "if x: a; b; c"),
        ("for ... in x: ...", "for i, j in x:\n    pass"),
        ("a = 1\nif x:", "a = 1\nif x:\n    b"),
        ("h, r = (\n    self.norm(\n        h,", "h, r = self.norm(h, r)"),
        ("h, r = self.norm(", "h, r = self.norm(\n    h,\n    r,\n)"),
        ("h = f(g(a,", "h = f(g(a, b), c)"),
        ("with f(...) as g:", "with (f(1) as g):\n    pass"),
        ("a = 1\n...\nb = 2", "a = 1\nx()\ny()\nb = 2"),
        ("a = 1\n...\nb = 2", "a = 1; b = 2"),
        ("def f(...): ...", "@deco\ndef f(self, x: int = 1, *, k) -> int:\n    return x"),
        ("def f(self, ...): ...", "def f(self, a, b=1, **k): pass"),
        ("lambda ...: x", "lambda a, b: x"),
        ("return x", "return (x)"),
        ("yield x", "(yield x)"),
        ("await f(...)", "await f(1)"),
        ("not a", "not(a)"),
        ("a < b", "(a) < (b)"),
        ("import a.b as c", "import a.b as c"),
        ("from a import b", "from a import (b)"),
    ],
)
def test_matches(pattern: str, code: str) -> None:
    assert matches(pattern, code) is not None


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("f(a)", "f(a, b)"),
        ("f(a, b)", "f(b, a)"),
        ("f(a, b=1)", "f(a, b=2)"),
        ("f(a, b=1)", "f(a, 1)"),
        ("f(a)", "f(*a)"),
        ("f(k=1, ...)", "f(1)"),
        ("x[a]", "x[a,]"),
        ("f($X, $X)", "f(a, b)"),
        ("f($X, $X)", "f(..., 1)"),
        ("'1'", "1"),
        ("1", "1.0"),
        ("True", "1"),
        ("b'a'", "'a'"),
        ("a and b", "a or b"),
        ("a < b", "a <= b"),
        ("if x: ...", "if x:\n    a\nelse:\n    b"),
        ("for x in y: ...", "async def g():\n    async for x in y: pass"),
        ("x = f()", "x = y = f()"),
        ("x = f()", "x += f()"),
        ("a + b + c", "a + (b + c)"),
        ("a = 1\nb = 2", "a = 1\nx()\nb = 2"),
        ("def f(self, ...): ...", "def f(cls, a): pass"),
        ("def f(): ...", "def f(x): pass"),
        ("f(x)", "f'{f(x)}'"),
        ("from a import b", "from .a import b"),
    ],
)
def test_does_not_match(pattern: str, code: str) -> None:
    assert matches(pattern, code) is None


def test_captures() -> None:
    assert matches("$OUT = self.$M($X, ...)", "a, b = self.attn(h + 1, mask)") == {
        "OUT": "a, b",
        "M": "attn",
        "X": "h + 1",
    }
    assert matches("f($X, $X)", "f(g(1, k=2), g(1,\n  k = 2))") == {"X": "g(1, k=2)"}
    # The first way to match ``...`` does not fit here; the matcher has to try the others.
    assert matches("f(..., $X, g($X))", "f(a, b, c, g(c))") == {"X": "c"}


def test_strings_and_comments_are_not_read_as_pattern_language() -> None:
    assert matches("f('$X', '...')", "f('$X', '...')") == {}
    assert matches("f(a)  # $X ...", "f(a)") == {}
    assert substitute("g($A, '$A')  # $A", {"A": "x"}) == "g(x, '$A')  # $A"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "empty"),
        ("...", "would match everything"),
        ("x = = 1", "is not Python in its line 1"),
        ("a = 1\nfoo)", "is not Python in its line 2"),
        ("# only a comment", "holds no code"),
    ],
)
def test_a_pattern_that_is_none_says_why(pattern: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        parse_pattern(pattern)


names = st.sampled_from(["a", "b", "hidden_states", "self.x", "self.attn.qkv"])
spaces = st.sampled_from(["", " ", "\n", "  # note\n  "])


def _call(function: str, arguments: list[str]) -> str:
    return f"{function}({', '.join(arguments)})"


expressions = st.recursive(
    names | st.integers(0, 99).map(str) | st.sampled_from(["'s'", "None"]),
    lambda inner: st.one_of(
        st.builds(_call, names, st.lists(inner, max_size=3)),
        st.builds("{}[{}]".format, names, inner),
        st.builds("({} + {})".format, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{} if {} else {}".format, names, names, names).map("({})".format),
    ),
    max_leaves=6,
)


@st.composite
def reformatted(draw: st.DrawFn) -> tuple[str, str]:
    """Code, and the same code formatted in another way."""
    code = draw(expressions)
    tokens: list[str] = []
    for token in cst.parse_module(code).code.replace("(", " ( ").replace(")", " ) ").replace(",", " , ").split(" "):
        if token == ")" and tokens and tokens[-1].strip() not in ("(", ",") and "if" not in tokens:
            # A trailing comma would make a tuple of a parenthesised expression, so only calls get one.
            tokens.append("")
        if token:
            tokens.append(token + draw(spaces))
    body = "".join(token if token.endswith((" ", "\n")) else token + " " for token in tokens)
    return code, f"({draw(spaces)}{body}{draw(spaces)})"


@settings(max_examples=40)
@given(reformatted())
def test_formatting_does_not_matter(pair: tuple[str, str]) -> None:
    code, other = pair
    assert matches(code, other) is not None
    assert matches(other, code) is not None


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), expressions), max_size=5, unique_by=lambda item: item[0]), st.data()
)
def test_the_order_of_keywords_does_not_matter(keywords: list[tuple[str, str]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(keywords))
    code = f"f(x, {', '.join(f'{name}={value}' for name, value in keywords)})"
    other = f"f(x, {', '.join(f'{name}={value}' for name, value in shuffled)},)" if keywords else "f(x,)"
    assert matches(code, other) is not None


@settings(max_examples=40)
@given(expressions, expressions)
def test_different_code_does_not_match(first: str, second: str) -> None:
    same = matches(first, second) is not None
    assert same == (cst.parse_expression(first).deep_equals(cst.parse_expression(second)) or _same(first, second))


def _same(first: str, second: str) -> bool:
    return ast.dump(ast.parse(first)) == ast.dump(ast.parse(second))


@settings(max_examples=40)
@given(st.text(alphabet="abx$.,()[]{}=:'\"#\\\n 1@*", max_size=25))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        parsed = parse_pattern(text)
    except EditError:
        return
    assert parsed.expression is not None or parsed.statements


def test_nth_and_inside(tmp_path: Path) -> None:
    source = """
        def f(x):
            a = g(x)
            if x:
                b = g(x)
            elif a:
                c = g(x)
            with x:
                d = g(x)
    """
    third = edit(tmp_path, source, "- {match: g(x), nth: 3, before: note()}")
    assert "    if x:\n        b = g(x)\n    elif a:\n        note()\n        c = g(x)\n" in third
    last = edit(tmp_path, source, "- {match: g(x), nth: -1, before: note()}")
    assert "        note()\n        d = g(x)" in last
    every = edit(tmp_path, source, "- {match: g(x), nth: all, before: note()}")
    assert every.count("note()") == 4
    within = edit(tmp_path, source, '- {match: g(x), inside: "with x: ...", before: note()}')
    assert within == last
    branch = edit(tmp_path, source, '- {match: g(x), inside: "if a:", before: note()}')
    assert branch == third


def test_alternatives_for_several_releases(tmp_path: Path) -> None:
    edits = '- {match: ["$OUT = old(x)", "$OUT = new(x, ...)"], dump: {name: o, value: $OUT}}'
    for call in ("old(x)", "new(x, 1)"):
        assert ".record(h)" in edit(tmp_path, f"def f(x):\n    h = {call}\n", edits)


def test_a_whole_statement_is_preferred_to_the_same_expression_elsewhere(tmp_path: Path) -> None:
    text = edit(tmp_path, "def f(x):\n    y = g(x)\n    g(x)\n", "- {match: g(x), append: note()}")
    assert text == "def f(x):\n    y = g(x)\n    g(x)\n    note()\n"

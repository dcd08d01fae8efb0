"""Whatever is tapped, the function returns what it returned before."""

from __future__ import annotations

import ast
import textwrap
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patcher.config.yaml_source import Origin
from patcher.load.compile import compile_module
from patcher.plan.edits import ConfigTexts, Dump, Edit, FunctionPatch, ModulePatch
from patcher.rewrite.module import RewrittenModule, rewrite_module
from patcher.tappable import TappablePlace, tappable_places
from tests.patcher.support import StandInDumper

VARIABLES = st.sampled_from(["a", "b", "c"])

expressions = st.recursive(
    VARIABLES | st.integers(-3, 9).map(str),
    lambda inner: st.one_of(
        st.builds("{} + {}".format, inner, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("g({}, k={})".format, inner, inner),
        st.builds("sum([g(i) for i in range(3) if {}])".format, inner),
        st.builds("(lambda n: g(n) + {})(2)".format, inner),
        st.builds("(c := g({}))".format, inner),
        st.builds("[{}, {}][0]".format, inner, inner),
    ),
    max_leaves=3,
)
simple = st.one_of(
    st.builds("{} = {}".format, VARIABLES, expressions),
    st.builds("{}, {} = g({}), {}".format, VARIABLES, VARIABLES, expressions, expressions),
    st.builds("{} += {}".format, VARIABLES, expressions),
    st.builds("g({})".format, expressions),
    st.builds("a = {}; b = g(a)".format, expressions),
    st.just("log.append(a)"),
)


def _indented(lines: list[str]) -> str:
    return textwrap.indent("\n".join(lines), "    ")


def _compound(head: str, test: str, body: list[str], other: list[str]) -> str:
    if head == "for":
        return f"for a in range(abs({test}) % 3):\n{_indented([*body, 'if a: continue', *other])}"
    if head == "try":
        handled = f"except ValueError as error:\n{_indented(other)}\nfinally:\n    log.append(1)"
        return f"try:\n{_indented([*body, 'h(a)'])}\n{handled}"
    if head == "with":
        return f"with manager({test}) as b:\n{_indented([*body, *other])}"
    if head == "def":
        return f"def inner(c):\n{_indented([*body, 'return c'])}\nb = inner({test})"
    return f"if {test}:\n{_indented(body)}\nelif b:\n{_indented(other)}\nelse: return g(a)"


blocks = st.recursive(
    st.lists(simple, min_size=1, max_size=2),
    lambda inner: st.lists(
        st.builds(_compound, st.sampled_from(["if", "for", "try", "with", "def"]), expressions, inner, inner) | simple,
        min_size=1,
        max_size=2,
    ),
    max_leaves=2,
)
PRELUDE = """
import contextlib
log = []
def g(x, k=0):
    log.append((x, k))
    return x + k
def h(x):
    if x > 2:
        raise ValueError(x)
    return x
@contextlib.contextmanager
def manager(x):
    log.append("in")
    yield x
    log.append("out")
"""


@st.composite
def functions(draw: st.DrawFn) -> str:
    """A module with a function ``f``: branches, loops, closures, walrus, one-line suites, several returns."""
    body = draw(blocks)
    end = draw(st.sampled_from(["return a, b, c", "return g(a, k=b)", "pass", "return"]))
    generator = draw(st.booleans())
    lines = [*body, "yield a" if generator else "pass", end]
    return f"{PRELUDE}\ndef f(a, b, c=1):\n    'doc'\n{_indented(lines)}\n"


def _outcome(code: Any, stand_in: StandInDumper | None, arguments: tuple[int, int]) -> Any:
    namespace: dict[str, Any] = {}
    if stand_in is not None:
        taps = [line for line in code[1] if line]
        assert taps
    exec(code[0], namespace)
    try:
        result = namespace["f"](*arguments)
        if not isinstance(result, (int, tuple, type(None))):
            items = []
            try:
                while True:
                    items.append(next(result))
            except StopIteration as stop:
                result = (items, stop.value)
    except Exception as error:
        result = type(error), str(error)
    return result, namespace["log"]


def _edits(places: list[TappablePlace]) -> list[Edit]:
    origin = Origin("taps.yaml", 1)
    edits: list[Edit] = []
    for place in places:
        dump = Dump(f"tap{len(edits)}", dims="t")
        if place.form == "at":
            kind: Any = place.pattern
            if kind == "entry":
                continue
            edits.append(Edit(len(edits) + 1, origin, kind, (), "after", dump))
        else:
            call = place.pattern.rpartition(" = ")[2]
            edits.append(Edit(len(edits) + 1, origin, "match", (call,), "wrap", dump, nth="all"))
    for name in "abc":
        dump = Dump(f"assigned_{name}")
        edits.append(Edit(len(edits) + 1, origin, "assign", (name,), "after", dump, optional=True))
    return edits


def _rewritten(source: str, edits: list[Edit]) -> RewrittenModule:
    patch = FunctionPatch("mod.f", "mod", ("f",), (), tuple(edits))
    return rewrite_module(source, ModulePatch("mod", (patch,), ConfigTexts((), (), "")), "mod.py")


@settings(derandomize=True, max_examples=15)
@given(functions(), st.tuples(st.integers(-2, 4), st.integers(-2, 4)), st.booleans(), st.randoms())
def test_taps_never_change_what_a_function_does(source: str, arguments: tuple[int, int], on: bool, random: Any) -> None:
    from patcher.match.function_text import FunctionBuffer
    from patcher.match.statements import index_function

    assume(source.count("\n") < 60)
    tree = ast.parse(source)
    function = tree.body[-1]
    assert isinstance(function, ast.FunctionDef)
    view = FunctionBuffer.from_source(source.split("\n"), function.lineno, function.end_lineno or 0).view()
    edits = _edits(tappable_places(index_function(view, view.find_function(("f",)))))
    random.shuffle(edits)
    edits = edits[:6]
    rewritten = _rewritten(source, edits)
    assert not rewritten.errors, rewritten.errors
    stand_in = StandInDumper()
    code = compile_module(rewritten, "mod.py")
    with _dumper(stand_in, on):
        patched = _outcome((code, rewritten.prelude), stand_in if rewritten.taps else None, arguments)
    assert patched == _outcome((compile(source, "mod.py", "exec"), ()), None, arguments)
    assert not [entry for entry in stand_in.log if entry[1] == "failed"]
    _lines_are_those_of_the_original(code, source)


def _lines_are_those_of_the_original(code: Any, source: str) -> None:
    last = source.count("\n") + 1
    stack = [code]
    while stack:
        current = stack.pop()
        assert all(line is None or 0 <= line <= last for _, _, line in current.co_lines())
        stack += [constant for constant in current.co_consts if hasattr(constant, "co_code")]


class _dumper:
    def __init__(self, stand_in: StandInDumper, on: bool) -> None:
        self.stand_in = stand_in
        install = stand_in.install_taps

        def installing(*arguments: Any) -> Any:
            taps = install(*arguments)
            for tap in taps:
                tap.on = on
            return taps

        stand_in.install_taps = installing  # type: ignore[method-assign]

    def __enter__(self) -> None:
        import sys
        import types

        self.real = sys.modules.get("dumper")
        fake: Any = types.ModuleType("dumper")
        fake.dumper = self.stand_in
        sys.modules["dumper"] = fake

    def __exit__(self, *_: object) -> None:
        import sys

        del sys.modules["dumper"]
        if self.real is not None:
            sys.modules["dumper"] = self.real

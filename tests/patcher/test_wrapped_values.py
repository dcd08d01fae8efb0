"""Text before and text after of taps around an expression."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.patcher.support import edit, edits_config, run_module


def test_wrap_records_in_place_and_evaluates_once(tmp_path: Path) -> None:
    source = """
        calls = []
        def g(x):
            calls.append(x)
            return x * 2
        def f(x):
            return [g(i) + 1 for i in x]
    """
    config = edits_config("- {wrap: g(...), dump: {name: doubled, i: i}}")
    module, dumper = run_module(tmp_path, source, config)
    assert module.f([1, 2]) == [3, 5]
    assert module.calls == [1, 2]
    assert dumper.log == [("doubled", 2, None, {"i": 1}), ("doubled", 4, None, {"i": 2})]
    dumper.taps[0].on = False
    assert module.f([3]) == [7]
    assert module.calls == [1, 2, 3]
    assert len(dumper.log) == 2


def test_match_with_wrap_true_and_a_value_made_of_the_match(tmp_path: Path) -> None:
    config = edits_config("- {match: g(...), wrap: true, dump: {name: first, value: '$MATCH[0]'}}")
    module, dumper = run_module(tmp_path, "def g(x): return x, 1\ndef f(x): return g(x)\n", config)
    assert module.f(5) == (5, 1)
    assert dumper.log == [("first", 5, None, {})]


def test_a_failing_tag_breaks_nothing(tmp_path: Path) -> None:
    config = edits_config(
        """
        - {at: entry, dump: {name: a, value: x, layer: x.missing}}
        - {wrap: x + 1, dump: {name: b, layer: nowhere}}
        """
    )
    module, dumper = run_module(tmp_path, "def f(x): return x + 1\n", config)
    assert module.f(1) == 2
    assert [entry[:2] for entry in dumper.log] == [("a", "failed"), ("b", "failed")]


def test_captures_are_put_in_with_parentheses_and_not_into_strings(tmp_path: Path) -> None:
    text = edit(tmp_path, "def f(a):\n    g(a + 1, [a])\n", "- {match: 'g($A, $B)', after: 'h($A * 2, $B, \"$A\")'}")
    assert text == 'def f(a):\n    g(a + 1, [a])\n    h((a + 1) * 2, [a], "$A")\n'


def test_wrapping_what_needs_parentheses(tmp_path: Path) -> None:
    source = "def f(x):\n    y = yield x\n    z = sum(i for i in y)\n    return z, 1\n"
    config = edits_config(
        """
        - {wrap: yield x, dump: {name: sent}}
        - {wrap: (i for i in y), dump: {name: items}}
        - {wrap: "z, 1", dump: {name: pair}}
        """
    )
    module, dumper = run_module(tmp_path, source, config)
    generator = module.f(1)
    assert next(generator) == 1
    with pytest.raises(StopIteration) as stopped:
        generator.send([1, 2])
    assert stopped.value.value == (3, 1)
    assert [entry[0] for entry in dumper.log] == ["sent", "items", "pair"]


def test_a_wrapped_value_takes_part_in_what_comes_later(tmp_path: Path) -> None:
    source = "def f(a):\n    if a: return h(g(a), a)\n"
    edits = """
        - {wrap: g(...), dump: {name: g}}
        - {match: 'return h(...)', before: x = 1}
        - {wrap: h(...), dump: {name: h}}
    """
    record = ", lambda __tensortap_value__: __tensortap_taps__[{}].record(__tensortap_value__))"
    assert edit(tmp_path, source, edits) == (
        "def f(a):\n    if a:\n        x = 1\n        return __tensortap_wrap__(__tensortap_taps__[1], "
        f"h(__tensortap_wrap__(__tensortap_taps__[0], g(a){record.format(0)}, a){record.format(1)}\n"
    )

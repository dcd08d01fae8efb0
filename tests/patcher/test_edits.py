"""Text before and text after, for every kind of edit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.patcher.support import block, edit, edits_config, errors, rewrite, run_module

SOURCE = """
    def f(x, layer):
        '''Doc.'''
        y = layer.norm(
            x,  # normed
        )
        if y.any():
            z = layer.attn(y, mask=None)
        else:
            z = y
        return z + x
"""


def test_before_and_after_a_statement(tmp_path: Path) -> None:
    text = edit(
        tmp_path,
        SOURCE,
        """
        - match: y = layer.norm(x)
          before: |
            a = 1
            b = 2
        - match: y = layer.norm(...)
          after: c = 3
        """,
    )
    assert text == block("""
        def f(x, layer):
            '''Doc.'''
            a = 1
            b = 2
            y = layer.norm(
                x,  # normed
            )
            c = 3
            if y.any():
                z = layer.attn(y, mask=None)
            else:
                z = y
            return z + x
    """)


def test_replace_a_statement_an_expression_and_delete(tmp_path: Path) -> None:
    text = edit(
        tmp_path,
        SOURCE,
        """
        - match: y = layer.norm(x)
          replace: |
            if x is not None:
                y = layer.norm(x) * 2
        - match: layer.attn($Y, ...)
          replace: "$MATCH * 1.5 + $Y"
        - match: z = y
          replacement: ""
        """,
    )
    assert text == block("""
        def f(x, layer):
            '''Doc.'''
            if x is not None:
                y = layer.norm(x) * 2
            if y.any():
                z = (layer.attn(y, mask=None) * 1.5 + y)
            else:
                pass
            return z + x
    """)


def test_a_tap_after_a_statement(tmp_path: Path) -> None:
    text = edit(
        tmp_path,
        SOURCE,
        """
        - match: z = layer.attn(...)
          dump: {name: attn_output, value: "z, x", dims: "t h", layer_id: layer.id, last: true}
        """,
    )
    assert text == block("""
        def f(x, layer):
            '''Doc.'''
            y = layer.norm(
                x,  # normed
            )
            if y.any():
                z = layer.attn(y, mask=None)
                if __tensortap_taps__[0].on:
                    try:
                        __tensortap_taps__[0].record((z, x), 't h', layer_id=layer.id, last=True)
                    except Exception:
                        __tensortap_taps__[0].failed()
            else:
                z = y
            return z + x
    """)


def test_entry_comes_after_docstring_and_preamble(tmp_path: Path) -> None:
    text = rewrite(
        tmp_path,
        SOURCE,
        """
        patches:
          - target: mod.f
            preamble: import math
            edits:
              - at: entry
                before: first = 1
              - match: y = layer.norm(...)
                before: last = 1
              - at: entry
                after: second = 1
        """,
    )
    assert text.startswith(
        block("""
        def f(x, layer):
            '''Doc.'''
            import math
            first = 1
            second = 1
            last = 1
            y = layer.norm(
        """)
    )


def test_every_return_and_the_open_end(tmp_path: Path) -> None:
    source = """
        def f(x):
            def inner():
                return 0
            if x: return inner()
            for i in x:
                return i, x
            print(x)
    """
    text = edit(
        tmp_path,
        source,
        """
        - at: return
          prepend: note($return)
        """,
    )
    assert text == block("""
        def f(x):
            def inner():
                return 0
            if x:
                __tensortap_return__ = inner()
                note(__tensortap_return__)
                return __tensortap_return__
            for i in x:
                __tensortap_return__ = i, x
                note(__tensortap_return__)
                return __tensortap_return__
            print(x)
            __tensortap_return__ = None
            note(__tensortap_return__)
    """)


def test_the_returned_value_by_either_name_and_by_default(tmp_path: Path) -> None:
    config = edits_config(
        """
        - {at: return, dump: {name: a}}
        - {at: return, dump: {name: b, value: "$RETURN[0]", n: len($return)}}
        """
    )
    module, dumper = run_module(tmp_path, "def f(x):\n    return x, x + 1\n", config)
    assert module.f(1) == (1, 2)
    assert dumper.log == [("a", (1, 2), None, {}), ("b", 1, None, {"n": 2})]


def test_return_without_its_value_runs_before_the_expression(tmp_path: Path) -> None:
    text = edit(tmp_path, "def f(x):\n    return g(x)\n", "- {at: return, before: note(x)}")
    assert text == "def f(x):\n    note(x)\n    return g(x)\n"


def test_assignments_of_every_kind(tmp_path: Path) -> None:
    source = """
        def f(x):
            h: int = 1
            (h, [*r, k]) = x
            h += 1
            for h in x: print(h)
            with open(x) as h:
                pass
            def g():
                h = 3
            try:
                pass
            except ValueError as h:
                pass
            import os.path as h
    """
    text = edit(tmp_path, source, "- {assign: h, after: note(h)}")
    assert text == block("""
        def f(x):
            h: int = 1
            note(h)
            (h, [*r, k]) = x
            note(h)
            h += 1
            note(h)
            for h in x:
                note(h)
                print(h)
            with open(x) as h:
                note(h)
                pass
            def g():
                h = 3
            try:
                pass
            except ValueError as h:
                note(h)
                pass
            import os.path as h
            note(h)
    """)
    only = edit(tmp_path, source, "- {assign: h, nth: -1, after: note(h)}")
    assert only.count("note(h)") == 1
    assert only.endswith("import os.path as h\n    note(h)\n")


def test_assignment_to_an_attribute_and_in_an_expression(tmp_path: Path) -> None:
    source = """
        def f(self, x):
            self.cache[0], y = x, 1
            while (n := next(x)):
                pass
    """
    text = edit(
        tmp_path,
        source,
        """
        - assign: self.cache[...]
          after: note(1)
        - assign: n
          dump: {name: n}
        """,
    )
    assert text == block("""
        def f(self, x):
            self.cache[0], y = x, 1
            note(1)
            while (__tensortap_wrap__(__tensortap_taps__[0], (n := next(x)), lambda __tensortap_value__: __tensortap_taps__[0].record(__tensortap_value__))):
                pass
    """)  # noqa: E501


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


def test_one_line_suites_and_semicolons_are_taken_apart(tmp_path: Path) -> None:
    source = "def f(x):\n    a = 1; b = 2; return a + b\n"
    text = edit(tmp_path, source, "- {match: b = 2, before: note(a), }\n- {match: b = 2, after: note(b)}")
    assert text == block("""
        def f(x):
            a = 1
            note(a)
            b = 2
            note(b)
            return a + b
    """)


def test_two_edits_at_one_statement_run_in_their_order(tmp_path: Path) -> None:
    source = """
        def f(x):
            if x:
                y = g(x)
            return y
    """
    text = edit(
        tmp_path,
        source,
        """
        - {match: "if x: ...", after: one()}
        - {match: "y = g(x)", after: two()}
        - {match: "y = g(x)", after: three()}
        - {match: "if x:", after: four()}
        - {match: "return y", before: five()}
        - {match: "return y", before: six()}
        """,
    )
    assert text == block("""
        def f(x):
            if x:
                y = g(x)
                two()
                three()
            one()
            four()
            five()
            six()
            return y
    """)


def test_a_later_edit_sees_replacements_and_not_insertions(tmp_path: Path) -> None:
    source = "def f(x):\n    y = g(x)\n    return y\n"
    text = edit(
        tmp_path,
        source,
        """
        - {match: y = g(x), replacement: y = h(x)}
        - {match: y = h(x), append: note(h(x))}
        - {match: h(x), nth: 1, replace: k(x)}
        - {match: note(...), replace: "pass"}
        """,
    )
    assert text == "def f(x):\n    y = (k(x))\n    pass\n    return y\n"


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


def test_decorators_and_multi_line_strings_stay_as_they_are(tmp_path: Path) -> None:
    source = """
        def f(x):
            @deco
            def g(): return 1
            return g()
    """
    text = edit(tmp_path, source, '- match: "def g(): ..."\n  before: |\n    s = """a\n    b"""\n    t = s')
    assert text == block('''
        def f(x):
            s = """a
        b"""
            t = s
            @deco
            def g(): return 1
            return g()
    ''')


def test_tabs_stay_tabs(tmp_path: Path) -> None:
    text = edit(tmp_path, "def f(x):\n\tif x:\n\t\ty = 1\n\treturn x\n", "- {match: y = 1, after: z = 2}")
    assert text == "def f(x):\n\tif x:\n\t\ty = 1\n\t\tz = 2\n\treturn x\n"


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


def test_nth_beyond_the_last_lists_the_places(tmp_path: Path) -> None:
    message = errors(tmp_path, "def f(x):\n    g(x)\n    g(x)\n", "- {match: g(x), nth: 3, before: note()}")
    assert "is found only twice" in message
    assert "1. line 2: g(x)" in message


def test_alternatives_for_several_releases(tmp_path: Path) -> None:
    edits = '- {match: ["$OUT = old(x)", "$OUT = new(x, ...)"], dump: {name: o, value: $OUT}}'
    for call in ("old(x)", "new(x, 1)"):
        assert ".record(h)" in edit(tmp_path, f"def f(x):\n    h = {call}\n", edits)


def test_captures_are_put_in_with_parentheses_and_not_into_strings(tmp_path: Path) -> None:
    text = edit(tmp_path, "def f(a):\n    g(a + 1, [a])\n", "- {match: 'g($A, $B)', after: 'h($A * 2, $B, \"$A\")'}")
    assert text == 'def f(a):\n    g(a + 1, [a])\n    h((a + 1) * 2, [a], "$A")\n'


def test_a_whole_statement_is_preferred_to_the_same_expression_elsewhere(tmp_path: Path) -> None:
    text = edit(tmp_path, "def f(x):\n    y = g(x)\n    g(x)\n", "- {match: g(x), append: note()}")
    assert text == "def f(x):\n    y = g(x)\n    g(x)\n    note()\n"


def test_definitions_in_both_branches_count_as_one_text(tmp_path: Path) -> None:
    source = "if X:\n    def f(x):\n        return a(x)\nelse:\n    def f(x):\n        return b(x)\n"
    text = edit(tmp_path, source, "- {match: a(x), before: note()}\n- {at: entry, before: start()}")
    assert text == (
        "if X:\n    def f(x):\n        start()\n        note()\n        return a(x)\n"
        "else:\n    def f(x):\n        start()\n        return b(x)\n"
    )


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


def test_entry_code_comes_after_global_declarations(tmp_path: Path) -> None:
    source = "def f(x):\n    'doc'\n    global seen\n    seen = x\n"
    text = edit(tmp_path, source, "- {at: entry, before: seen = 0}")
    assert text == "def f(x):\n    'doc'\n    global seen\n    seen = 0\n    seen = x\n"
    only = edit(tmp_path, "def f():\n    global seen\n", "- {at: entry, before: seen = 0}")
    assert only == "def f():\n    global seen\n    seen = 0\n"


def test_a_tap_with_a_condition_and_dims_that_depend_on_one(tmp_path: Path) -> None:
    source = "def f(x, flag):\n    y = g(x)\n    return h(y)\ndef g(x): return x + 1\ndef h(x): return 2 * x\n"
    taps = """
        - match: y = g(x)
          dump:
            name: y
            value: y
            if: y > 2
            dims: {if: 'lambda: flag', then: "t h", else: "h t"}
        - {wrap: h(...), dump: {name: h, if: '$MATCH != 4', dims: {if: flag, then: a, else: b}, twice: 2 * $MATCH}}
        - {at: return, dump: {name: out, value: x, if: '$return > 6'}}
        - {at: entry, dump: {name: broken, value: x, if: nowhere}}
    """
    module, stand_in = run_module(tmp_path, source, edits_config(taps))
    assert [module.f(x, flag) for x, flag in ((1, True), (2, False), (3, True))] == [4, 6, 8]
    assert [entry for entry in stand_in.log if entry[0] != "broken"] == [
        ("y", 3, "t h", {}),
        ("h", 6, "b", {"twice": 12}),
        ("y", 4, "t h", {}),
        ("h", 8, "a", {"twice": 16}),
        ("out", 3, None, {}),
    ]
    assert [entry[1] for entry in stand_in.log if entry[0] == "broken"] == ["failed"] * 3


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

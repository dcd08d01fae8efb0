"""Text before and text after, for every kind of edit."""

from __future__ import annotations

from pathlib import Path

from tests.patcher.support import block, edit, edits_config, rewrite, run_module

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

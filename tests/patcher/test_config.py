"""Reading configs: SGLang's format, and clear messages for what is wrong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import patcher
from patcher.config.format import config_schema
from patcher.config.load import load_config, parse_config
from patcher.config.tap_inputs import find_cycle
from patcher.errors import ConfigError
from tests.patcher.support import block, check, edits_config, errors, rewrite


def test_a_config_in_sglangs_format_means_the_same(tmp_path: Path) -> None:
    source = """
        class Layer:
            def forward(self, x):
                x = self.norm(x)
                x = self.attn(x)
                self.log(x)
                return self.mlp(x)
    """
    text = rewrite(
        tmp_path,
        source,
        """
        patches:
          - target: mod.Layer.forward
            preamble: |
              from sglang.srt.debug_utils.dumper import dumper
            edits:
              - match: |
                  x = self.norm(x)
                  x = self.attn(x)
                prepend: |
                  dumper.dump("input", x)
              - match: "self.log(x)"
                replacement: ""
              - match: "return self.mlp(x)"
                replacement: |
                  y = self.mlp(x)
                  dumper.dump("mlp", y, dims="t h")
                  return y
        """,
    )
    assert text == block("""
        class Layer:
            def forward(self, x):
                from sglang.srt.debug_utils.dumper import dumper
                dumper.dump("input", x)
                x = self.norm(x)
                x = self.attn(x)
                y = self.mlp(x)
                dumper.dump("mlp", y, dims="t h")
                return y
    """)


def test_the_dumper_needs_no_import_and_shadows_nothing(tmp_path: Path) -> None:
    source = """
        dumper = "the target's own"
        def f(x):
            return x, dumper
    """
    text = rewrite(
        tmp_path,
        source,
        edits_config(
            """
            - match: return ...
              before: |
                with dumper.ctx(a=1):
                    dumper.dump("x", x, dims="t")
                    if x: dumper.dump("y", dumper)
                dumper.step(x)
            """
        ),
    )
    assert text == block("""
        dumper = "the target's own"
        def f(x):
            with __tensortap_dumper__.ctx(a=1):
                if __tensortap_taps__[0].on: __tensortap_taps__[0].dump("x", x, dims="t")
                if x: __tensortap_taps__[1].on and __tensortap_taps__[1].dump("y", __tensortap_dumper__)
            __tensortap_dumper__.step(x)
            return x, dumper
    """)


def test_taps_are_listed_with_their_ids(tmp_path: Path) -> None:
    config = edits_config(
        """
        - {at: entry, dump: {name: a, value: x, level: sample(rows=4), grad: true, inputs: [b, c@-1], operation: sum}}
        - {match: return ..., requires: {nowhere: ">=1"}, before: "pass"}
        - at: return
          before: |
            dumper.step(x)
            dumper.dump(f"b{x}", x)
        """
    )
    checked = check(tmp_path, "def f(x):\n    return x\n", config)
    (module,) = checked.modules
    assert module.rewritten is not None
    file = str(tmp_path / "mod.py")
    common = {
        "target": "mod.f", "file": file, "line": 2, "level": None, "grad": False, "inputs": (), "operation": None,
    }  # fmt: skip
    assert sorted((tap.as_dict() for tap in module.rewritten.taps), key=lambda tap: str(tap["id"])) == [
        {
            "id": "mod.f#1:a",
            "name": "a",
            "kind": "dump",
            **common,
            "level": "sample(rows=4)",
            "grad": True,
            "inputs": ("b", "c@-1"),
            "operation": "sum",
        },
        {"id": "mod.f#3:f'b{x}'", "name": "f'b{x}'", "kind": "dump", **common},
        {"id": "mod.f#3:step", "name": "step", "kind": "step", **common},
    ]
    assert any("nowhere >=1, which is not installed" in note.message for note in checked.plan.notes)


def test_prelude_comes_after_docstring_and_future_imports_and_only_if_needed(tmp_path: Path) -> None:
    source = '"""Doc."""\nfrom __future__ import annotations\nimport os\ndef f(x):\n    return x\n'
    checked = check(tmp_path, source, edits_config("- {at: entry, dump: {name: a, value: x}}"))
    assert checked.modules[0].rewritten is not None
    lines = checked.modules[0].rewritten.text.split("\n")
    assert lines[2] == "from dumper import dumper as __tensortap_dumper__"
    assert lines[3].startswith("__tensortap_taps__ = __tensortap_dumper__.install_taps('mod', ({'id': 'mod.f#1:a'")
    assert lines[4] == "import os"
    plain = check(tmp_path, source, edits_config("- {at: entry, before: x = x + 1}"))
    assert plain.modules[0].rewritten is not None
    assert plain.modules[0].rewritten.prelude == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patches: [", "taps.yaml:1:11: not valid YAML"),
        ("patches:\n  - target: a\n\tx: 1", "taps.yaml:3:1: not valid YAML"),
        ("- 1", "taps.yaml:1: a patch config is a mapping"),
        ("", "taps.yaml:1: a patch config is a mapping"),
        ("patchs: []", "taps.yaml:1: unknown key 'patchs'; did you mean 'patches'?"),
        (
            "patches:\n- {target: a, edits: []}\n- {target: a, target: b}",
            "taps.yaml:3: the key 'target' is given twice",
        ),
        ("patches:\n- target: a.b\n  edit: []", "taps.yaml:3: unknown key 'edit'; did you mean 'edits'?"),
        ("patches:\n- edits: []", "taps.yaml:2: the key 'target' is missing"),
        (edits_config("- {mach: a, before: b}"), "taps.yaml:4: unknown key 'mach'; did you mean 'match'?"),
        (edits_config("- {match: a, before: b, after: c}"), "taps.yaml:4: patches.0.edits.0: only one of"),
        (edits_config("- {match: a, prepend: b, dump: {name: x}}"), "only one of 'prepend' and 'dump'"),
        (edits_config("- {match: a, at: entry, before: b}"), "only one place is allowed in one edit"),
        (edits_config("- {before: b}"), "the edit names no place"),
        (edits_config("- {match: a}"), "the edit does nothing"),
        (edits_config("- {match: a, nth: 0, before: b}"), "nth counts from 1"),
        (edits_config("- {match: a, nth: first, before: b}"), "patches.0.edits.0.nth"),
        (edits_config("- {match: a, before: true}"), "'before' needs 'dump' beside it"),
        (edits_config("- {at: exit, before: b}"), "Input should be 'entry' or 'return'"),
        (edits_config("- {at: entry, dump: {value: x}}"), "the key 'name' is missing"),
        (edits_config("- {at: entry, dump: {name: x, layer-id: 1}}"), "the tag 'layer-id' is not a Python name"),
        (edits_config("- {at: entry, dump: {name: x, class: 1}}"), "'class' is a word of Python"),
        (edits_config("- {at: entry, dump: {name: x, rank: 1}}"), "every record has a 'rank' of its own"),
        (edits_config("- {at: entry, step: {batch: x, layout: y}}"), "'layout' means something else to the dumper"),
        (edits_config("- {match: a, tags: {step: 1}}"), "every record has a 'step' of its own"),
        (
            edits_config("- {at: entry, dump: {name: x, dims: 't h[tp'}}"),
            "taps.yaml:4: patches.0.edits.0.dump.dims: dims 't h[tp' leave a bracket open in 'h[tp'",
        ),
        (
            edits_config("- {at: entry, dump: {name: x, dims: {if: a, then: t h, else: t t}}}"),
            "taps.yaml:4: patches.0.edits.0.dump.dims.else: dims 't t' use the name 't' more than once",
        ),
        ("defaults: {dims: 't h[tp:half]'}\npatches: []", "taps.yaml:1: defaults.dims: unknown qualifier 'half'"),
        (
            edits_config("- {at: entry, dump: {name: x, level: all}}"),
            "'all' is not a level: use full, sample, sample(rows=N), sample(stride=N), stats or hash",
        ),
        (edits_config("- {at: entry, dump: {name: x, level: sample(rows=0)}}"), "'sample(rows=0)' is not a level"),
        (
            edits_config("- {at: entry, dump: {name: x, operation: atention}}"),
            "taps.yaml:4: patches.0.edits.0.dump.operation: there is no operation 'atention'; did you mean 'attention'",
        ),
        (edits_config("- {at: entry, dump: {name: x, operation: 1}}"), "operation: Input should be a valid string"),
        (edits_config("- {at: entry, dump: {name: x, inputs: [3]}}"), "inputs: the name of a tap is text, not 3"),
        (edits_config("- {at: entry, dump: {name: x, inputs: {a: b}}}"), "a list of names of taps is expected"),
        (edits_config("- {at: entry, dump: {name: x, inputs: [y@1]}}"), "'y@1' names no tap: write NAME, NAME@-1"),
        (edits_config("- {at: entry, dump: {name: x, inputs: [y@-0]}}"), "'y@-0' names no tap"),
        (edits_config("- {at: entry, dump: {name: x, inputs: ['']}}"), "'' names no tap"),
        (edits_config("- {at: entry, dump: {name: x, dims: {if: a, then: t}}}"), "the key 'else' is missing"),
        (
            edits_config("- {at: entry, dump: {name: x, dims: {if: a, then: t, else: t, or: t}}}"),
            "taps.yaml:4: unknown key 'or'; known keys: if, then, else",
        ),
        (
            edits_config(
                "- {at: entry, dump: {name: x, inputs: [z@-1, y]}}\n- {at: return, dump: {name: y, inputs: x@last}}"
            ),
            "taps.yaml:4: inputs: these taps are computed from each other: x <- y <- x; what comes from the layer",
        ),
        (edits_config("- {at: entry, dump: {name: x, inputs: [x]}}"), "computed from each other: x <- x;"),
    ],
)
def test_a_wrong_config_says_where_and_why(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "taps.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("taps.yaml:")
    assert "\n" not in str(caught.value) or "YAML" in str(caught.value)


def test_a_tap_of_the_layer_before_closes_no_cycle() -> None:
    edits = "- {at: entry, dump: {name: x, inputs: [y@-1]}}\n- {at: return, dump: {name: y, inputs: x}}"
    config = parse_config(edits_config(edits), "taps.yaml").files[0].config
    assert [spec.inputs for _, spec in config.patches[0].dumps()] == [["y@-1"], ["x"]]


_NAMES = st.sampled_from("abcdef")


@given(st.dictionaries(_NAMES, st.lists(st.tuples(_NAMES, st.sampled_from(["", "@-1", "@last"])), max_size=4)))
def test_a_cycle_is_found_exactly_where_there_is_one(edges: dict[str, list[tuple[str, str]]]) -> None:
    inputs = {name: [other + suffix for other, suffix in found] for name, found in edges.items()}
    same_layer = {name: {other for other, suffix in found if suffix != "@-1"} for name, found in edges.items()}
    reached = dict(same_layer)
    for _ in "abcdef":
        reached = {
            name: found.union(*(reached.get(other, set()) for other in found)) for name, found in reached.items()
        }
    cycle = find_cycle(inputs)
    assert bool(cycle) == any(name in found for name, found in reached.items())
    for name, other in itertools.pairwise(cycle):
        assert other in same_layer[name]
    assert not cycle or cycle[0] == cycle[-1]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"patches: [] # \xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml: is not UTF-8 \(byte 14\)"):
        load_config(tmp_path / "latin.yaml")


SOURCE = "def f(x):\n    y = g(x)\n    return y\n"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            "- match: y = g(x)\n  after: |\n    a = 1\n    b = = 2\n",
            "taps.yaml:7: the code of the edit does not compile: invalid syntax: 'b = = 2'",
        ),
        ("- match: y = g(x)\n  after: await z\n", "taps.yaml:4: the code of the edit does not compile there: 'await'"),
        ("- match: y = g(x)\n  after: yield z; return (yield)\n  nth: 2", "found only once"),
        ("- match: y = g(x)\n  after: yield x", "'yield' would make a generator of the function: 'yield x'"),
        ("- {match: y = g(x), after: $Z}", "taps.yaml:4: $Z is captured nowhere (captured here: $MATCH, $arguments)"),
        ("- {at: entry, dump: {name: y}}", "taps.yaml:4: dump 'y' has no 'value'"),
        ("- {at: entry, dump: {name: y, value: 'x +'}}", "taps.yaml:4: 'x +' is not a Python expression"),
        ("- {at: entry, dump: {name: y, value: x, t: a b}}", "taps.yaml:4: 'a b' is not a Python expression"),
        ("- {match: 'y = = g(x)', after: z}", "taps.yaml:4: the pattern is not Python in its line 1"),
        ("- {match: g(x), replace: 'a = 1'}", "an expression has to replace it"),
        ("- {match: y = g(x), wrap: true, dump: {name: z}}", "wrap needs an expression"),
        (
            "- {match: y = h(x), after: z}",
            "match: y = h(x) is found nowhere; nearest:\n  line 2:\n    - y = h(x)\n    + y = g(x)",
        ),
        ("- {match: y, after: z, inside: 'while x: ...'}", "is found nowhere inside 'while x: ...'"),
        ("- {at: return, replace: z}", "use 'match: return ...' to replace a return"),
        ("- {at: entry, after: dumper.dump()}", "dumper.dump needs a name"),
        ("- {assign: z, after: q}", "assign: z is found nowhere"),
        ("- {assign: 'if z: ...', after: q}", "is not a name or another target"),
    ],
)
def test_an_edit_that_does_not_land_says_why(tmp_path: Path, edits: str, message: str) -> None:
    assert message in errors(tmp_path, SOURCE, edits)


@pytest.mark.parametrize(
    "preamble", ["break", "await x", "nonlocal q", "a = 1; return = 2", "z = yield", "yield from x"]
)
def test_a_preamble_that_does_not_compile_is_an_error(tmp_path: Path, preamble: str) -> None:
    config = f"patches:\n- target: mod.f\n  preamble: {preamble}\n  edits:\n  - {{match: return y, before: z = 1}}\n"
    checked = check(tmp_path, SOURCE, config)
    (message,) = checked.errors
    assert message.startswith("taps.yaml:3: the code of the ")
    assert "does not compile" in message


def test_what_yields_already_or_elsewhere_may_yield(tmp_path: Path) -> None:
    source = "def f(x):\n    def g():\n        yield x\n    return list(g())\n\n\ndef h(x):\n    y = 1\n    yield y\n"
    inner = "def k():\n      yield 2\n    z = lambda: (yield 1)"
    config = (
        f"patches:\n- target: mod.f\n  preamble: |\n    {inner}\n  edits: [{{match: 'return list(g())', before: z}}]\n"
        "- target: mod.h\n  preamble: yield 0\n  edits: [{match: yield y, after: yield 2}]\n"
        "- {target: mod.f.g, edits: [{match: yield x, after: yield 3}]}\n"
    )
    assert not check(tmp_path, source, config).errors
    config = "patches:\n- {target: mod.f, edits: [{match: 'return list(g())', before: yield 3}]}\n"
    (message,) = check(tmp_path, source, config).errors
    assert "would make a generator" in message


def test_a_pattern_found_twice_lists_both_places(tmp_path: Path) -> None:
    source = "def f(x):\n    y = g(x)\n    # g(x) here\n    z = 'g(x)', g(\n        x)\n"
    assert errors(tmp_path, source, "- {match: g(x), before: a}") == (
        "taps.yaml:4: match: g(x) is found twice; narrow it with 'inside', or choose with 'nth: 1', 'nth: -1' or "
        "'nth: all':\n  1. line 2: g(x)\n  2. line 4: g( x)"
    )


def test_one_failing_edit_does_not_hide_the_others(tmp_path: Path) -> None:
    checked = check(tmp_path, SOURCE, edits_config("- {match: no(x), after: z}\n- {at: entry, before: z}"))
    (module,) = checked.modules
    assert [landing.error is None for landing in module.landings] == [False, True]
    assert module.landings[1].lines == (2,)
    optional = check(tmp_path, SOURCE, edits_config("- {match: no(x), after: z, optional: true}"))
    assert optional.ok


def test_names_that_nothing_defines_are_errors(tmp_path: Path) -> None:
    source = "import torch\nLIMIT = 3\ndef g(a): return a\ndef f(hidden_states):\n    y = g(1)\n    return y\n"
    config = edits_config(
        """
        - {assign: y, dump: {name: y, layer: hidden_state.shape, k: "[i for i in range(LIMIT)]", r: y or gone}}
        - {match: y = $X, after: "z = torch.sum($X); dumper.dump('z', z)"}
        - {at: return, before: 'print(z, residual, gone if y is None else y)'}
        """
    )
    assert check(tmp_path, source, config).ok  # it allows them all
    checked = check(tmp_path, source, config.replace("undefined: true", "undefined: [gone]"))
    advice = " If it comes from elsewhere, name it in 'undefined: [...]' of the edit"
    assert checked.errors == (
        f"taps.yaml:4: nothing in reach of mod.f is called 'hidden_state'; did you mean 'hidden_states'?.{advice}",
        f"taps.yaml:6: nothing in reach of mod.f is called 'residual'.{advice}",
    )


def test_requires(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '1.5.0'\n")
    config = "requires: {}\npatches: [{{target: mod.f, edits: [{{at: entry, before: y, requires: {}}}]}}]\n"
    met = check(tmp_path, SOURCE, config.format('{pkg: ">=1.4,<2"}', '[{pkg: "<1"}, {pkg: "==1.5.*"}]'))
    assert met.ok
    assert met.modules
    other = check(tmp_path, SOURCE, config.format('{pkg: ">=2"}', '{pkg: ">=1"}'))
    assert other.errors == ("taps.yaml:1: the config is for another release: it needs pkg >=2, this is pkg 1.5.0",)
    edit = check(tmp_path, SOURCE, config.format('{pkg: ">=1"}', '{pkg: "<1"}'))
    assert edit.ok
    assert not edit.modules
    assert "taps.yaml:2: mod.f#1 left out: it needs pkg <1, this is pkg 1.5.0" in [n.message for n in edit.plan.notes]


def test_the_schema_that_ships_is_the_one_of_the_models() -> None:
    shipped = json.loads((Path(patcher.__file__).parent / "schema.json").read_text())
    assert shipped == json.loads(json.dumps(config_schema()))
    validator = jsonschema.Draft202012Validator(shipped)
    validator.check_schema(shipped)
    good = edits_config("- {wrap: [a, b], nth: all, dump: {name: x, layer_id: 3, dims: t h}}")
    assert validator.is_valid(yaml.safe_load(good))
    assert not validator.is_valid(yaml.safe_load(edits_config("- {mach: a, before: b}")))


def test_a_value_that_refers_to_itself() -> None:
    with pytest.raises(ConfigError, match="refers to itself"):
        parse_config("patches: &a [*a]")


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_message(text: str) -> None:
    for config in (text, f"patches:\n  - target: {text}\n    edits: [{{match: a, before: b}}]"):
        message = "taps.yaml"
        try:
            parse_config(config, "taps.yaml")
        except ConfigError as error:
            message = str(error)
        assert message.startswith("taps.yaml")

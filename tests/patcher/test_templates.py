"""What a config says once: defaults of taps, and configs that build on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from patcher.check import check_loaded
from patcher.config.format import config_schema
from patcher.config.load import LoadedConfig, configs_from_json, configs_to_json, load_config, parse_config
from patcher.config.tap_format import DumpSpec
from patcher.errors import ConfigError
from patcher.plan.planner import make_plan
from patcher.source.modules import ModuleFinder

DEFAULTS = """\
defaults: {dims: "t h", level: stats, slot: r}
patches:
- target: mod.f
  defaults: {layer_id: self.layer_id, dims: "h t"}
  edits:
  - {at: entry, dump: {name: a, value: x}}
  - {match: y = g(x), before: {name: b, value: x, layer_id: 3, level: full}}
  - {at: return, before: y = 1}
  undefined: [r, self]
- target: mod.g
  edits:
  - {at: return, dump: {name: c}}
  undefined: [r]
"""
BASE = """\
parameters:
  function:
  tags: {layer_id: 1}
  dims: t h
requires: {python: ">=3"}
patches:
- target: ${module}
  defaults: {dims: "${dims}"}
  edits:
  - at: return
    dump: {name: out, value: "${function}($return)"}
"""


def taps(config: LoadedConfig) -> list[DumpSpec]:
    return [spec for file in config.files for patch in file.config.patches for _, spec in patch.dumps()]


def test_a_tap_has_the_defaults_of_its_patch_and_of_the_file() -> None:
    a, b, c = taps(parse_config(DEFAULTS, "taps.yaml"))
    assert (a.dims, a.level, a.tags) == ("h t", "stats", {"slot": "r", "layer_id": "self.layer_id"})
    assert (b.dims, b.level, b.tags) == ("h t", "full", {"slot": "r", "layer_id": "3"})
    assert (c.dims, c.level, c.tags) == ("t h", "stats", {"slot": "r"})


def test_an_expression_of_a_default_has_the_line_of_the_default(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text("def f(x):\n    y = g(x)\n    return y\ndef g(x):\n    return x\n")
    for old, new, line, count in (("slot: r", "slot: r r", 1, 3), ("self.layer_id", "(self", 4, 1)):
        config = parse_config(DEFAULTS.replace(old, new), "taps.yaml")
        errors = check_loaded([config], ModuleFinder([tmp_path])).errors
        assert len(errors) == count
        assert all(error.startswith(f"taps.yaml:{line}: '") for error in errors)
        assert all("is not a Python expression" in error for error in errors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: {level: some}\npatches: []", "taps.yaml:1: defaults.level: 'some' is not a level"),
        (
            "patches: []\ndefaults: {value: x}",
            "taps.yaml:2: defaults: 'value' cannot be a default, because it belongs to one tap",
        ),
        ("patches:\n- target: a\n  defaults:\n    a-b: 1", "taps.yaml:4: patches.0.defaults: the tag 'a-b' is not"),
        ("extends: {config: x, wiht: {}}", "taps.yaml:1: unknown key 'wiht'; did you mean 'with'?"),
        ("extends: 3", "taps.yaml:1: extends: Input should be"),
        ("{}", "taps.yaml:1: the key 'patches' is missing"),
        ("patches: []\nextends: sglang/lama", "taps.yaml:2: extends: sglang/lama: cannot be read: No such file"),
        ("extends: sglang/lama", "of the configs that ship, sglang/llama and"),
        ("parameters:\n  a: 1\n  b:\npatches: []", "taps.yaml:3: the parameter 'b' has no value"),
        ("parameters: {a: 1}\npatches:\n- target: ${b}", "taps.yaml:3: there is no parameter 'b' (there are: 'a')"),
        ("parameters: [a]\npatches: []", "taps.yaml:1: parameters: Input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_is_said_where_it_is(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "taps.yaml")
    lines = str(caught.value).splitlines()
    assert any(message in line for line in lines), caught.value


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_config_builds_on_others(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text("def f(x):\n    return x\n")
    base = BASE.replace("${module}", "mod.f")
    extending = """\
extends:
- config: base.yaml
  with: {function: len, dims: {if: x, then: t, else: h}}
- {config: base.yaml, with: {function: str}}
patches:
- {target: mod.f, edits: [{at: entry, dump: {name: in, value: x}}]}
"""
    write(tmp_path, base=base, own=extending)
    config = load_config(tmp_path / "own.yaml")
    assert [tap.value for tap in taps(config)] == ["len($return)", "str($return)", "x"]
    assert [file.document.path for file in config.files] == [
        str(tmp_path / name) for name in ("base.yaml", "base.yaml", "own.yaml")
    ]
    plan = make_plan([config], ModuleFinder([tmp_path]))
    assert [edit.number for edit in plan.modules[0].functions[0].edits] == [1, 2, 3]
    assert plan.configs.texts == (extending, base)
    assert plan.configs.paths == (str(tmp_path / "own.yaml"), str(tmp_path / "base.yaml"))
    checked = check_loaded([config], ModuleFinder([tmp_path]))
    assert checked.ok
    rewritten = checked.modules[0].rewritten
    assert rewritten is not None
    assert ".record(len(__tensortap_return__), 't' if (x) else 'h')" in rewritten.text
    assert ".record(str(__tensortap_return__), 't h')" in rewritten.text


def test_a_launched_process_needs_none_of_the_files(tmp_path: Path) -> None:
    write(
        tmp_path, base=BASE.replace("${module}", "mod.f"), middle="extends: {config: base.yaml, with: {function: len}}"
    )
    write(tmp_path, own="extends: middle.yaml")
    config = load_config(tmp_path / "own.yaml")
    text = configs_to_json([config])
    for file in tmp_path.glob("*.yaml"):
        file.unlink()
    (again,) = configs_from_json(text)
    assert taps(again) == taps(config)
    assert again.bases == config.bases
    assert "\n" not in text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"own": "extends: own.yaml"}, "own.yaml:1: extends: "),
        ({"own": "extends: base.yaml", "base": "extends: own.yaml"}, "builds on itself"),
        ({"own": "\nextends: base.yaml", "base": "patches: [{target: a, edit: []}]"}, "own.yaml:2: extends: "),
        ({"own": "extends: base.yaml", "base": "patches: [{target: a, edit: []}]"}, "base.yaml:1: unknown key 'edit'"),
        ({"own": "extends: base.yaml", "base": BASE}, "base.yaml:2: the parameter 'function' has no value"),
        (
            {"own": "extends: {config: base.yaml, with: {function: f}}", "base": BASE},
            "base.yaml:7: there is no parameter 'module'",
        ),
        (
            {"own": "extends: {config: base.yaml, with: {fnction: f}}", "base": BASE},
            "base.yaml has no parameter 'fnction' (its parameters: 'function', 'tags', 'dims')",
        ),
        (
            {
                "own": "extends: base.yaml\npatches: [{target: a, edits: [{at: return, dump: {name: y, inputs: x}}]}]",
                "base": "patches: [{target: a, edits: [{at: return, dump: {name: x, inputs: y}}]}]",
            },
            "base.yaml:1: inputs: these taps are computed from each other: x <- y <- x",
        ),
    ],
)
def test_a_base_that_is_wrong(tmp_path: Path, files: dict[str, str], message: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "own.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", [DEFAULTS, BASE, "extends: a", "extends: [a, {config: b, with: {c: [1]}}]"])
def test_the_schema_knows_them(text: str) -> None:
    schema: Any = config_schema()
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(text))


def test_the_schema_refuses_a_config_of_nothing() -> None:
    assert not jsonschema.Draft202012Validator(config_schema()).is_valid({"description": "nothing"})


def test_a_config_on_which_several_build_counts_once(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text("def f(x):\n    return x\n")
    patch = "patches:\n- target: mod.f\n  edits: [{at: entry, dump: {name: NAME, value: x}}]\n"
    (tmp_path / "base.yaml").write_text("parameters: {tag: 1}\n" + patch.replace("x}", "x, k: '${tag}'}"))
    for name, base in (("a", "base.yaml"), ("b", "base.yaml"), ("c", "{config: base.yaml, with: {tag: 2}}")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {base}\n{patch.replace('NAME', name)}")
    names = [tmp_path / "base.yaml", *(tmp_path / f"{name}.yaml" for name in "abc")]
    checked = check_loaded([load_config(name) for name in names], ModuleFinder([tmp_path]))
    assert checked.ok
    assert [tap for landing in checked.modules[0].landings for tap in landing.taps] == [
        "mod.f#1:NAME",
        "mod.f#2:a",
        "mod.f#3:b",
        "mod.f#4:NAME",
        "mod.f#5:c",
    ]

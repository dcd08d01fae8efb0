"""Whatever text a parser of the comparator is given, it answers with a value or with its own error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from comparator.arguments import load_override_config, parse_override
from comparator.errors import ComparatorError
from comparator.match.map import compile_rules, load_map, parse_template
from comparator.patterns import compiled
from comparator.verdict.criteria import compile_predicate, parse_rules
from tensortap.dims import DimsError, parse_dims
from tensortap.printable import printable

DIMS = st.text(st.sampled_from("tbsh1()[]*:,#= \tdpxé\x00"), max_size=60)
ANYTHING = st.text(max_size=80)


@given(DIMS | ANYTHING)
def test_dims(text: str) -> None:
    with contextlib.suppress(DimsError):
        dims = parse_dims(text)
        assert dims.dimensions
        assert all(position < len(dims.dimensions) for position in dims.token_dimensions)


@given(ANYTHING)
def test_patterns_criteria_and_overrides(text: str) -> None:
    for read in (
        compiled,
        compile_predicate,
        lambda one: parse_override(one, "both"),
        lambda one: parse_rules([one, one]),
    ):
        with contextlib.suppress(ComparatorError):
            read(text)


@given(st.text(st.sampled_from("ab{},= .\n"), max_size=40))
def test_templates_of_maps(text: str) -> None:
    with contextlib.suppress(ComparatorError):
        parse_template(text, "here")


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["map", "baseline", "target", "target_slice", "target_values", "overrides", "match", "dims", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(content=YAML | ANYTHING)
@settings(max_examples=60)
def test_config_files(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    with contextlib.suppress(ComparatorError):
        load_override_config(path)
    with contextlib.suppress(ComparatorError):
        compile_rules(load_map(path), "target", "here")


@given(st.text(st.characters(), max_size=40))
def test_printed_text_is_one_line_without_controls(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(one) < 32 or 127 <= ord(one) < 160 for one in shown)
    shown.encode("utf-8")
    if text.isprintable():
        assert shown == text

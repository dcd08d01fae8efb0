"""Maps between the names of two frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import comparator
from comparator.errors import ComparatorError
from comparator.match.map import parse_template
from tests.comparator.fakes import FakeRecord, FakeRun, values


def compared(tmp_path: Path, config: str, baseline: FakeRun, target: FakeRun) -> comparator.Report:
    path = tmp_path / "map.yaml"
    path.write_text(config)
    return comparator.compare(baseline, target, map_config=path)


def layers(names: str, count: int, *, dims: str, shift: int = 0, tag: bool = False, shape: Any = (3, 4)) -> FakeRun:
    return FakeRun(
        [
            FakeRecord(
                names if tag else names.format(i=layer),
                values(*shape, seed=layer + shift),
                dims=dims,
                tags={"layer_id": layer} if tag else {},
            )
            for layer in range(count)
        ]
    )


def test_module_paths_against_names_with_tags(tmp_path: Path) -> None:
    config = "map: [{baseline: 'model.layers.{i}.self_attn.o_proj', target: 'attn_output, layer_id={i}'}]"
    left = layers("model.layers.{i}.self_attn.o_proj", 12, dims="t h")
    right = layers("attn_output", 12, dims="t h", tag=True)
    report = compared(tmp_path, config, left, right)
    assert report.summary.passed == report.summary.total == 12
    assert [finding.label for finding in report][:2] == ["attn_output layer_id=0", "attn_output layer_id=1"]
    shifted = layers("attn_output", 12, dims="t h", tag=True, shift=1)
    assert compared(tmp_path, config, left, shifted).summary.failed == 12


def test_dims_of_the_map_transpose(tmp_path: Path) -> None:
    config = "map: [{baseline: a, target: b, baseline_dims: 'h t', target_dims: 't h'}]"
    x = values(3, 4)
    left, right = FakeRun([FakeRecord("a", x.T.copy())]), FakeRun([FakeRecord("b", x)])
    assert compared(tmp_path, config, left, right).passed


QKV = """
map:
  - {baseline: q, target: qkv, target_slice: {dim: h, sizes: [4, 1, 1], part: 0}}
  - {baseline: k, target: qkv, target_slice: {dim: h, sizes: [4, 1, 1], part: 1}}
  - {baseline: v, target: qkv, target_slice: {dim: h, sizes: [4, 1, 1], part: 2}}
"""


def test_a_fused_tensor_over_tensor_parallel_ranks_against_its_pieces(tmp_path: Path) -> None:
    q, k, v = values(3, 16), values(3, 4, seed=1), values(3, 4, seed=2)
    pieces = {"q": q, "k": k, "v": v}
    baseline = FakeRun([FakeRecord(name, array, dims="t h") for name, array in pieces.items()])
    records = [
        FakeRecord(
            "qkv", np.concatenate([np.split(x, 2, axis=1)[rank] for x in (q, k, v)], axis=1), rank, dims="t h[tp]"
        )
        for rank in range(2)
    ]
    target = FakeRun(records, {0: {"tp": (0, 2)}, 1: {"tp": (1, 2)}})
    report = compared(tmp_path, QKV, baseline, target)
    assert [(finding.name, finding.category) for finding in report] == [
        ("q", "passed"),
        ("k", "passed"),
        ("v", "passed"),
    ]
    assert records[1].data is not None
    records[1].data[0, 9] += 1  # k of rank 1
    assert [finding.name for finding in compared(tmp_path, QKV, baseline, target).of("failed")] == ["k"]


def test_pieces_in_groups(tmp_path: Path) -> None:
    config = "map: [{baseline: k, target: qkv, target_slice: {dim: h, sizes: [2, 1, 1], part: 1, group: 4}}]"
    fused = np.arange(16, dtype=np.float32).reshape(2, 8)
    baseline = FakeRun([FakeRecord("k", fused[:, [2, 6]], dims="t h")])
    assert compared(tmp_path, config, baseline, FakeRun([FakeRecord("qkv", fused, dims="t h")])).passed


def test_what_no_rule_matches_keeps_its_name(tmp_path: Path) -> None:
    run = FakeRun([FakeRecord("same", values(2, 2), dims="t h")])
    assert compared(tmp_path, "map: [{baseline: a, target: b}]", run, run).passed


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("map: [{baseline: a}]", "map.0.target"),
        ("map: [{baseline: a, target: b, dims: t}]", "map.0.dims"),
        ("map: [{baseline: 'a.{i}', target: b}]", "{i} must be on both sides"),
        ("map: [{baseline: 'a.{i', target: b}]", "cannot read 'a.{i'"),
        ("map: [{baseline: a, target: 'b, c'}]", "'c' is no tag"),
        ("map: [{baseline: a, target: b, target_dims: 't t'}]", "'t' more than once"),
        ("map: [{baseline: a, target: b, target_slice: {dim: h, sizes: [1], part: 1}}]", "part 1 of 1"),
        ("map: [", "not valid YAML"),
        ("- x", "the file"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, config: str, message: str) -> None:
    run = FakeRun([FakeRecord("same", values(2, 2), dims="t h")])
    with pytest.raises(ComparatorError) as caught:
        compared(tmp_path, config, run, run)
    assert message in str(caught.value)
    assert "map.yaml" in str(caught.value)


def test_a_slice_that_does_not_fit(tmp_path: Path) -> None:
    config = "map: [{baseline: q, target: qkv, target_slice: {dim: h, sizes: [4, 1], part: 0}}]"
    baseline = FakeRun([FakeRecord("q", values(2, 4), dims="t h")])
    report = compared(tmp_path, config, baseline, FakeRun([FakeRecord("qkv", values(2, 6), dims="t h")]))
    assert "cannot be cut in the proportions" in report.describe()


def test_a_long_name_does_not_hang_a_rule_with_many_placeholders() -> None:
    template = parse_template("{a}{b}{c}{d}{e}{f}{g}{h}!", "the map")
    assert template.pattern.fullmatch("x" * 60_000) is None


def test_a_placeholder_that_stands_twice_is_the_same_text() -> None:
    template = parse_template("layers.{i}.copy_of_{i}", "the map")
    assert template.pattern.fullmatch("layers.3.copy_of_3").groupdict() == {"i": "3"}
    assert template.pattern.fullmatch("layers.3.copy_of_4") is None

"""What the page gets of single tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from comparator.cli import main
from comparator.errors import ComparatorError
from comparator.options import Options
from comparator.pipeline import begin
from comparator.prepared import prepare
from comparator.report import strips as module
from comparator.report.html.columns import unpack
from comparator.report.shares import piece_of
from comparator.report.strips import TokenStrips, open_tokenizer, token_strips
from dumper.reading.open import open_run
from tests.comparator.test_analysis import MODEL, as_run
from tests.report.two_ranks import half_scaled, two_ranks


def tokens_of(page: Path) -> dict[str, list[dict[str, object]]]:
    return dict(unpack(page.read_text(encoding="utf-8").partition('id="data-tokens">')[2].partition("<")[0]))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows 1,000 tokens: w0, w1, ..."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer(models.WordLevel({f"w{number}": number for number in range(1000)}, unk_token="w0")).save(str(path))
    return path


def test_tokens_of_a_comparison(recorded: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(open_run(Path(recorded["right"])), open_run(Path(recorded["wrong"])), Options())
    comparing = begin(prepared)
    list(comparing)
    assert comparing.analysis is not None
    found = token_strips(comparing.analysis, prepared.planner.token_ids(), {})
    assert found is not None
    assert found.taps == ["out layer_id=3"]
    (strip,) = found.sequences
    assert strip.positions == [0, 1, 2, 3, 4]
    layouts = [prepared.baseline.layout(step, 0) for step in (0, 1)]
    ids = [layout.token_ids.tolist() for layout in layouts if layout is not None and layout.token_ids is not None]
    assert strip.ids == [one for some in ids for one in some]
    floor = comparing.analysis.diagnosis.judgements[0].floor
    assert strip.worst == pytest.approx(np.minimum([0.4 / floor] * 5, 1e3), rel=0.3)
    assert len(found.grid) == 1
    assert len(found.grid[0]) == 5
    monkeypatch.setattr(module, "MOST_TOKENS", 3)
    monkeypatch.setattr(module, "MOST_CELLS", 2)
    cut = token_strips(comparing.analysis, (), {})
    assert cut is not None
    (strip,) = cut.sequences
    assert (strip.positions, strip.tokens, strip.ids, cut.grid) == ([0, 1, 2], 5, [], [])


def test_tokens_are_decoded(recorded: dict[str, str], tokenizer: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    arguments = [recorded["right"], recorded["wrong"], "-q", "-o", str(page)]
    for given in (tokenizer, tokenizer.parent):
        assert main([*arguments, "--tokenizer", str(given)]) == 1
        (strip,) = tokens_of(page)["sequences"]
        assert strip["texts"] == [f"w{number}" for number in strip["ids"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("broken", ["missing", "empty", "text"])
def test_a_tokenizer_that_cannot_be_used_leaves_the_ids(
    recorded: dict[str, str], broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokenizer.json"
    if broken != "missing":
        path.write_text("{}" if broken == "empty" else "no tokenizer")
    page = tmp_path / "report.html"
    assert main([recorded["right"], recorded["wrong"], "-q", "-o", str(page), "--tokenizer", str(path)]) == 1
    assert "the report shows token ids" in capsys.readouterr().err
    (strip,) = tokens_of(page)["sequences"]
    assert strip["texts"] == []
    assert strip["ids"]
    with pytest.raises(ComparatorError):
        open_tokenizer(str(path))


def test_a_tokenizer_of_another_model(tokenizer: Path) -> None:
    decode = open_tokenizer(str(tokenizer))
    assert decode([3, 999, -1]) == ["w3", "w999", "?"]
    assert decode([3, 1000]) is None


@pytest.fixture(scope="module")
def split() -> TokenStrips:
    """Of a model with experts on one rank, against two ranks with faults."""
    prepared = prepare(as_run(MODEL.run()), two_ranks(MODEL.run(fault=half_scaled)), Options())  # type: ignore[arg-type]
    comparing = begin(prepared)
    list(comparing)
    assert comparing.analysis is not None
    found = token_strips(comparing.analysis, prepared.planner.token_ids(), prepared.contexts["target"].world)
    assert found is not None
    return found


def test_errors_of_what_each_rank_holds(split: TokenStrips) -> None:
    shares = {one.tap: dict(zip(one.numbers, one.levels, strict=True)) for one in split.ranks}
    assert sorted(shares) == [f"attn_pre_o_proj layer_id={layer}" for layer in range(3)]
    assert shares["attn_pre_o_proj layer_id=0"] == {0: -30, 1: -30}
    faulty = shares["attn_pre_o_proj layer_id=1"]
    assert faulty[0] == -30
    assert faulty[1] > 10  # 0.4 of a row is more than ten times what is tolerated


def test_errors_of_the_rows_of_each_expert(split: TokenStrips) -> None:
    shares = {one.tap: dict(zip(one.numbers, one.levels, strict=True)) for one in split.experts}
    assert set(shares["moe_expert_output layer_id=0"].values()) == {-30}
    faulty = shares["moe_expert_output layer_id=2"]
    assert max(faulty, key=lambda expert: faulty[expert]) == 3
    assert "moe_router_logits layer_id=2" not in shares


def test_the_load_of_experts_on_both_sides(split: TokenStrips) -> None:
    assert len(split.routers) == 3
    for router in split.routers:
        assert [sum(side) for side in router.load] == [router.rows * router.top_k] * 2
    first, last = split.routers[0], split.routers[-1]
    assert first.load[0] == first.load[1]
    assert last.load[0] != last.load[1]


@pytest.mark.parametrize(
    ("axes", "expected"), [(("tp",), (1, 2)), (("ep", "tp"), (5, 6)), ((), (0, 1)), (("none",), (0, 1))]
)
def test_pieces(axes: tuple[str, ...], expected: tuple[int, int]) -> None:
    assert piece_of({"tp": (1, 2), "ep": (2, 3)}, axes) == expected

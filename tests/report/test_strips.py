"""What the page gets of single tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from comparator.cli import main
from comparator.errors import ComparatorError
from comparator.options import Options
from comparator.pipeline import prepare
from comparator.report import strips as module
from comparator.report.html.columns import unpack
from comparator.report.strips import token_strips
from comparator.report.tokenizer import open_tokenizer
from dumper.reading.open import open_run


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
    comparing = prepared.comparing()
    list(comparing)
    assert comparing.analysis is not None
    found = token_strips(comparing.analysis, prepared.planner.token_ids())
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
    cut = token_strips(comparing.analysis, ())
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

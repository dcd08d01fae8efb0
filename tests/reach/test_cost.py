"""What taps cost while they are put in grows with their number and with nothing else."""

from __future__ import annotations

import marshal
from pathlib import Path

import pytest

from patcher.check import Checked, check_loaded
from patcher.config.load import parse_config
from patcher.load.compile import compile_module
from patcher.match import function_text, search
from patcher.source.modules import ModuleFinder


def nested(depth: int) -> tuple[str, str]:
    """``f0(f1(f2(x)))``, each call wrapped."""
    call = "x"
    for number in range(depth):
        call = f"self.f{number}({call})"
    edits = [f"      - {{wrap: self.f{number}(...), dump: {{name: f{number}}}}}" for number in range(depth)]
    return f"class Net:\n    def forward(self, x):\n        return {call}\n", "\n".join(edits)


def chained(count: int, edit: str) -> tuple[str, str]:
    """``x = self.f0(x)``, ``x = self.f1(x)`` and so on, with the same edit of each."""
    body = "".join(f"        x = self.f{number}(x)\n" for number in range(count))
    edits = [f"      - {{{edit.replace('N', str(number))}}}" for number in range(count)]
    return f"class Net:\n    def forward(self, x):\n{body}        return x\n", "\n".join(edits)


def checked(folder: Path, made: tuple[str, str]) -> Checked:
    source, edits = made
    (folder / "net.py").write_text(source)
    config = f"patches:\n  - target: net.Net.forward\n    edits:\n{edits}\n"
    found = check_loaded([parse_config(config, "taps.yaml")], ModuleFinder([folder], []))
    assert found.ok, "\n".join(found.errors)
    return found


def code_size(folder: Path, made: tuple[str, str]) -> int:
    rewritten = checked(folder, made).modules[0].rewritten
    assert rewritten is not None
    return len(marshal.dumps(compile_module(rewritten, "net.py")))


def test_nested_wraps_make_code_in_proportion(tmp_path: Path) -> None:
    sizes = {depth: code_size(tmp_path, nested(depth)) for depth in (5, 10, 20)}
    assert sizes[20] < 3 * sizes[10] < 9 * sizes[5]


def test_python_s_own_limit_of_nesting_is_the_only_one(tmp_path: Path) -> None:
    assert code_size(tmp_path, nested(99))


@pytest.mark.parametrize(
    "edit",
    [
        "match: x = self.fN(...), dump: {name: nN, value: x}",
        "match: x = self.fN(...), before: {name: nN, value: x}",
        "wrap: self.fN(...), dump: {name: nN}",
        "match: x = self.fN(...), after: print(x)",
        "match: x = self.fN(...), replace: x = self.gN(x)",
        "match: self.fN(...), replace: self.gN(x)",
        "match: x = self.fN(...), tags: {layer_id: N}",
        "match: x = self.fN(x), append: print(x)",
    ],
)
def test_the_edits_of_a_function_share_a_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(function_text, "_parsed", lambda text: parsed.append(text) or function_text._Parsed(text))
    sizes: dict[int, int] = {}
    parses: dict[int, int] = {}
    for count in (10, 20, 40):
        parsed.clear()
        sizes[count] = code_size(tmp_path, chained(count, edit))
        parses[count] = len(parsed)
    assert parses[10] == parses[20] == parses[40] <= 2
    assert sizes[40] < 2.5 * sizes[20] < 6.25 * sizes[10]


def test_a_pattern_looks_at_few_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    match_statements = search.match_statements
    monkeypatch.setattr(search, "match_statements", lambda *given: compared.append(given) or match_statements(*given))
    checked(tmp_path, chained(40, "match: x = self.fN(...), dump: {name: nN, value: x}"))
    assert len(compared) <= 4 * 40

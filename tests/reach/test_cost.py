"""What taps cost while they are put in grows with their number and with nothing else."""

from __future__ import annotations

import marshal
from pathlib import Path

from patcher.check import Checked, check_loaded
from patcher.config.load import parse_config
from patcher.load.compile import compile_module
from patcher.source.modules import ModuleFinder


def nested(depth: int) -> tuple[str, str]:
    """``f0(f1(f2(x)))``, each call wrapped."""
    call = "x"
    for number in range(depth):
        call = f"self.f{number}({call})"
    edits = [f"      - {{wrap: self.f{number}(...), dump: {{name: f{number}}}}}" for number in range(depth)]
    return f"class Net:\n    def forward(self, x):\n        return {call}\n", "\n".join(edits)


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

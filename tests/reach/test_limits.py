"""Patterns and globs without a limit of their own end in a message, never in a crash or in minutes of silence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dumper import open_run
from patcher.errors import EditError, TargetError
from patcher.match.pattern import parse_pattern
from patcher.source.modules import ModuleFinder
from patcher.source.targets import MOST_MATCHES, resolve_target
from tests.reach.launched import patcher, write


@pytest.mark.parametrize(
    "pattern",
    [
        "(" * 5000 + "x" + ")" * 5000,
        "f(" * 5000,
        "[" * 101 + "x" + "]" * 101,
        "lambda: " * 5000 + "x",
        "x" + "+x" * 5000,
    ],
    ids=["brackets", "open calls", "lists", "lambdas", "sums"],
)
def test_a_pattern_that_is_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(EditError, match="is too large"):
        parse_pattern(pattern)


def test_a_pattern_may_be_large() -> None:
    parse_pattern("(" * 90 + "x" + ")" * 90)
    parse_pattern("f(" + "x, " * 900 + ")")


def test_a_glob_that_means_everything_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "everything"
    package.mkdir()
    (package / "__init__.py").touch()
    for number in range(3):
        functions = "".join(f"    def f{index}(self): pass\n" for index in range(MOST_MATCHES // 2))
        (package / f"part{number}.py").write_text(f"class A:\n{functions}")
    with pytest.raises(TargetError, match=f"more than {MOST_MATCHES} functions"):
        resolve_target("everything.*.*.*", ModuleFinder([tmp_path]))


def test_run_says_when_nothing_is_recorded_and_records_in_one_word(tmp_path: Path) -> None:
    write(
        tmp_path,
        model="def f(x):\n    y = x + 1\n    return y\n",
        serve="import model\nprint(model.f(1))\n",
        config="patches: [{target: model.f, edits: [{assign: y, dump: {name: y}}]}]",
    )
    command = ("--", sys.executable, "serve.py")
    done = patcher(tmp_path, "run", "-c", "config.yaml", *command)
    assert (done.code, done.out) == (0, "2\n")
    assert "nothing is recorded" in done.err
    done = patcher(tmp_path, "run", "-c", "config.yaml", "--record", "here", *command)
    assert (done.code, done.out, done.err) == (0, "2\n", "")
    assert [record.name for record in open_run(tmp_path / "here" / "run").records] == ["y"]
    assert not (tmp_path / "runs").exists()

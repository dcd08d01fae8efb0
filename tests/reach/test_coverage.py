"""What was planned stands in the run: installed or not, fired or not, whatever kind of tap it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dumper import open_run
from tests.reach.launched import ROOT, Done, launch, write

torch = pytest.importorskip("torch", reason="torch is not installed")

MODULE = """
    def work(x):
        h = x * 2
        return h
    """
CONFIG = """
    patches:
      - {target: used.work, edits: [{assign: h, dump: {name: h}}]}
      - {target: unused.work, edits: [{assign: h, dump: {name: h}}]}
    """


def listing(done: Done, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dumper", "ls", *options, str(done.run)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_a_target_that_was_never_imported_stands_in_the_run(tmp_path: Path) -> None:
    write(tmp_path, used=MODULE, unused=MODULE, config=CONFIG, serve="import used\nused.work(1)\n")
    done = launch(tmp_path, "serve.py")
    assert done.recorded() == {"h": 1}
    assert "unused.work#1:h" in done.silent()
    strict = listing(done, "--strict-taps")
    assert strict.returncode == 1
    assert "unused.work#1:h" in strict.stdout
    assert "never imported" in strict.stdout


def test_a_command_that_imports_no_target_says_how_many_were_installed(tmp_path: Path) -> None:
    write(tmp_path, used=MODULE, unused=MODULE, config=CONFIG, serve="print('done')\n")
    done = launch(tmp_path, "serve.py")
    assert done.out == "done\n"
    assert "0 of 2 taps were installed" in done.err


def test_a_target_that_only_a_child_imports_is_installed(tmp_path: Path) -> None:
    write(
        tmp_path,
        used=MODULE,
        config="patches: [{target: used.work, edits: [{assign: h, dump: {name: h}}]}]",
        serve="""
            import subprocess, sys
            subprocess.run([sys.executable, '-c', 'import used; used.work(1)'], check=True)
            """,
    )
    done = launch(tmp_path, "serve.py")
    assert done.recorded() == {"h": 1}
    assert "taps were installed" not in done.err


class Shared(torch.nn.Module):
    """One part at two paths, one called by ``forward`` alone, one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)
        self.tied = self.first
        self.unused = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.second.forward(self.first(x))


def attached(tmp_path: Path, **options: Any) -> Any:
    from dumper import dumper

    dumper.configure(enable=True, dir=str(tmp_path), run="attached")
    net = Shared()
    try:
        with dumper.step(), dumper.attach(net, "*", **options):
            net(torch.ones(2, 4))
    finally:
        dumper.close()
        dumper.configure(enable=False)
    return open_run(tmp_path / "attached")


def test_modules_called_by_forward_are_recorded(tmp_path: Path) -> None:
    names = {record.name for record in attached(tmp_path, inputs=True).records}
    assert {"first", "second", "first.input.0", "second.input.0"} <= names


def test_an_attached_module_that_never_runs_is_silent(tmp_path: Path) -> None:
    run = attached(tmp_path)
    assert any("unused" in tap for tap in run.silent_taps)
    assert not any("second" in tap for tap in run.silent_taps)


def test_a_module_at_two_paths_is_recorded_under_both_or_named(tmp_path: Path) -> None:
    run = attached(tmp_path)
    names = {record.name for record in run.records}
    assert "first" in names
    assert "tied" in names


def test_a_gradient_is_not_what_was_computed_again(tmp_path: Path) -> None:
    from dumper import dumper

    dumper.configure(enable=True, dir=str(tmp_path), run="gradients")
    try:
        layer = torch.nn.Linear(3, 3)
        with dumper.step():
            hidden = torch.utils.checkpoint.checkpoint(lambda x: layer(again(x)), torch.ones(2, 3), use_reentrant=False)
            dumper.dump("hidden", hidden, grad=True)
            hidden.sum().backward()
    finally:
        dumper.close()
        dumper.configure(enable=False)
    marked = {(record.name, record.stream): record.recompute for record in open_run(tmp_path / "gradients").records}
    assert marked == {("inner", "value"): True, ("hidden", "value"): False, ("hidden", "grad"): False}


def again(value: Any) -> Any:
    from dumper import dumper

    dumper.dump("inner", value)
    return value

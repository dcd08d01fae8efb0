"""What a small comparison loads: counted in modules, which a loaded machine does not change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from comparator.report.reporters import PlainConsole, sent_on
from dumper.recording.recorder import Recorder

LEFT_ALONE = {
    # Libraries that only some comparisons need.
    *("torch", "polars", "pandas", "pydantic", "rich", "re2", "jinja2", "yaml", "matplotlib", "zstandard"),
    *("numpy.random", "numpy.testing", "numpy.fft", "numpy.polynomial", "difflib", "html"),
    # Parts of ours.
    *("dumper.recording.recorder", "dumper.writing", "dumper.adapters", "dumper.convert", "dumper.reading.listing"),
    *("dumper.rules.levels", "dumper.readers.msprobe.dump", "tensortap.completion"),
    *("comparator.report.explain", "comparator.report.html", "comparator.match.map", "comparator.commands"),
}
MOST_MODULES = 465
"""Of Python's, numpy's and ours; there were 454 when this began to be counted."""
DATACLASSES = {
    "dumper.layout.ContextParallelRows",
    "dumper.layout.DataParallelRows",
    "dumper.layout.SequenceSpan",
    "dumper.layout.TokenLayout",
}
"""Those that recording has too, where msgspec is not loaded. To make one takes half a millisecond; a ``Struct`` takes a
hundredth of that."""


def loaded_by(*arguments: str) -> tuple[list[str], list[str]]:
    """The modules that a comparison has loaded, and the dataclasses among what ours hold; it is to end with 0."""
    code = f"""
import sys
from comparator.__main__ import main
code = main({list(arguments)!r})
made = {{
    f"{{one.__module__}}.{{one.__qualname__}}"
    for name, module in sys.modules.items() if name.split(".")[0] in ("comparator", "dumper", "tensortap")
    for one in vars(module).values() if isinstance(one, type) and "__dataclass_fields__" in vars(one)
}}
print(code, " ".join(sorted(made)), *sys.modules, sep="\\n", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    exit_code, made, *loaded = done.stderr.splitlines()
    assert exit_code == "0", done.stdout
    return loaded, made.split()


def test_a_small_comparison_loads_what_it_needs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        recorder = Recorder()
        recorder.configure(enable=True, dir=str(tmp_path), run=name, control=False)
        recorder.step()
        recorder.dump("hidden", torch.ones(8, 16, dtype=torch.bfloat16), dims="t h", layer_id=0)
        recorder.close()
    loaded, made = loaded_by(str(tmp_path / "a"), str(tmp_path / "b"))
    assert sorted({*LEFT_ALONE, "dumper.readers.sglang.dump"} & set(loaded)) == []
    assert len(loaded) <= MOST_MODULES
    assert set(made) <= DATACLASSES


def test_two_dumps_without_batches_load_nothing_for_these_nor_for_a_diagnosis(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        content = {"value": torch.ones(8, 16, dtype=torch.bfloat16), "meta": {"dims": "t h"}}
        torch.save(content, tmp_path / name / "step=0___rank=0___dump_index=0___name=hidden.pt")
    loaded, made = loaded_by(str(tmp_path / "a"), str(tmp_path / "b"), "--report-path", "")
    others = {"dumper.readers.sglang.token_layouts", "dumper.readers.streams.opening", "dumper.format.index"}
    assert sorted((LEFT_ALONE | others | {"comparator.diagnosis"}) & set(loaded)) == []
    assert len(loaded) <= MOST_MODULES
    assert set(made) <= DATACLASSES


ENDINGS = """
import atexit, os, sys, threading
from comparator.__main__ import end
atexit.register(lambda: os.write(1, b"atexit\\n"))
if sys.argv[1] == "thread":
    threading.Thread(target=lambda: (threading.Event().wait(0.2), os.write(1, b"thread\\n"))).start()
print("out")
print("error", file=sys.stderr)
end(3)
"""


@pytest.mark.parametrize("ending", ["alone", "thread"])
def test_a_process_ends_with_all_that_it_has_to_say(ending: str) -> None:
    command = [sys.executable, "-c", ENDINGS, ending]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert sorted(done.stdout.split()) == sorted(["atexit", "out", *(["thread"] if ending == "thread" else [])])
    assert (done.returncode, done.stderr) == (3, "error\n")


def test_a_process_whose_output_cannot_be_written_ends_as_any_other() -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    found = []
    for end in ("from comparator.__main__ import end", "end = sys.exit"):
        command = [sys.executable, "-c", f"import sys; {end}; print('x'); end(0)"]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=60, check=False
            )
        found.append((done.returncode, done.stderr))
    assert found[0] == found[1]
    assert found[0][0] == 120


def test_lines_that_wait_are_printed_before_what_ends_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole()
    console.print("at once")
    assert capsys.readouterr().out == "at once\n"
    console.at_once = False
    lines = [f"line {number}" for number in range(1000)]

    def report() -> None:
        with sent_on(console):
            for line in lines:
                console.print(line)
            raise ValueError("an error")

    with pytest.raises(ValueError, match="an error"):
        report()
    assert capsys.readouterr().out.splitlines() == lines

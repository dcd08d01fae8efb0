"""What a small comparison loads: counted in modules, which a loaded machine does not change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from dumper.recording.recorder import Recorder

LEFT_ALONE = {
    # Libraries that only some comparisons need.
    *("torch", "polars", "pandas", "pydantic", "rich", "re2", "jinja2", "yaml", "matplotlib", "zstandard"),
    *("numpy.random", "numpy.testing", "numpy.fft", "numpy.polynomial", "difflib", "html"),
    # Parts of ours.
    *("dumper.recording.recorder", "dumper.writing", "dumper.adapters", "dumper.convert", "dumper.reading.listing"),
    *("dumper.readers.sglang.dump", "dumper.readers.msprobe.dump"),
    *("comparator.report.explain", "comparator.report.html", "comparator.match.map", "comparator.commands"),
}
MOST_MODULES = 465
"""Of Python's, numpy's and ours; there were 454 when this began to be counted."""


def test_a_small_comparison_loads_what_it_needs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        recorder = Recorder()
        recorder.configure(enable=True, dir=str(tmp_path), run=name, control=False)
        recorder.step()
        recorder.dump("hidden", torch.ones(8, 16, dtype=torch.bfloat16), dims="t h", layer_id=0)
        recorder.close()
    code = f"""
import sys
from comparator.__main__ import main
code = main([{str(tmp_path / "a")!r}, {str(tmp_path / "b")!r}])
print(code, *sys.modules, sep="\\n", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    exit_code, *loaded = done.stderr.splitlines()
    assert exit_code == "0", done.stdout
    assert sorted(LEFT_ALONE & set(loaded)) == []
    assert len(loaded) <= MOST_MODULES

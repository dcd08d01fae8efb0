"""What a tap has the processor read between the operations of a model, counted by a simulation of its caches.

    python -m benchmarks.gpu.footprint

Needs no device, and valgrind with its headers and a C compiler. A tiny decoder runs on the CPU under callgrind, with a
call of an empty function at its taps, with ``clone``, with taps, and with steps that record nothing; printed, not kept,
is what each takes more than the first, for each tap: lines of 64 bytes of code and of data that were not in the first
caches. Other than times, they are the same within a tenth or two in each run, whatever else the machine does. What the
driver of a device adds is not in them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.decoder import Decoder, Size
from benchmarks.gpu.sides import Other, Recording, Side
from benchmarks.report import table
from dumper.writing import writer

SIZE = Size(layers=24, hidden=64, inner=128, heads=4, past=16, mlp_taps=16, tokens=(1, 4, 64))
STEPS, WARM_UP = 8, 12
CACHES = ("--I1=32768,8,64", "--D1=32768,8,64", "--LL=1048576,16,64")
"""Bytes, ways, and bytes of a line: the first caches and the second one of a core, as of the servers of today."""
REQUESTS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; }
void zero(void) { CALLGRIND_ZERO_STATS; }
void end(void) { CALLGRIND_DUMP_STATS; CALLGRIND_STOP_INSTRUMENTATION; }
"""
INSIDE = "--inside"


class OnlySteps(Recording):
    """Steps that begin and end, with an empty function at the taps."""

    def end(self) -> None:
        self.recorder.close()
        self.recorder.configure(enable=False)


@dataclass(frozen=True)
class Counts:
    code: int
    """Lines."""
    data: int

    @classmethod
    def of_file(cls, file: Path) -> Counts:
        """What callgrind has written."""
        text = file.read_text()
        names = _line(text, "events").split()
        events = dict(zip(names, map(int, _line(text, "totals").split()), strict=True))
        return cls(events["I1mr"], events["D1mr"] + events["D1mw"])

    def beside(self, other: Counts) -> tuple[str, ...]:
        """What there is more than in ``other``, for each tap."""
        pairs = ((self.code, other.code), (self.data, other.data))
        return tuple(f"{(own - its) / STEPS / SIZE.taps:.0f}" for own, its in pairs)


def _line(text: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"callgrind has written no {name}")
    return found[1]


def sides(folder: Path) -> list[Side]:
    """The first is what the others are held against."""
    decoder = Decoder(SIZE, "cpu")

    def empty(name: str, value: torch.Tensor, layer: int) -> None:
        """As calls of a recorder."""

    return [
        Other("a call", decoder, empty, lambda: None),
        Other("x.clone()", decoder, lambda name, value, layer: value.clone(), lambda: None),
        OnlySteps("steps", folder, lambda x, taps: decoder.with_calls(x, empty)),
        Recording("full", folder, decoder.tapped),
        Recording("stats", folder, decoder.tapped, level="stats"),
    ]


def run_inside(requests: ctypes.CDLL, folder: Path) -> None:
    """All sides, under callgrind, which writes a file for each."""
    torch.set_num_threads(1)
    writer.NAP = writer.LONG_NAP = 3600.0  # its thread is not what is counted
    x = torch.randn(1, SIZE.hidden, dtype=torch.bfloat16)
    gc.disable()
    with torch.no_grad():
        for side in sides(folder):
            side.begin()
            for _ in range(WARM_UP):
                side.step(x)
            requests.begin()
            side.step(x)
            requests.zero()
            for _ in range(STEPS):
                side.step(x)
            requests.end()
            side.flush()
            side.end()
            print(side.name)


def counted(folder: Path) -> dict[str, Counts]:
    """Of each side, by its name. Raises SystemExit where something that is needed is missing or fails."""
    for program in ("valgrind", "cc"):
        if shutil.which(program) is None:
            raise SystemExit(f"not measured: there is no {program} here")
    source, requests = folder / "requests.c", folder / "requests.so"
    source.write_text(REQUESTS)
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(requests)], check=True)
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--cache-sim=yes", *CACHES]
    command += [f"--callgrind-out-file={folder}/counts", sys.executable, "-m", "benchmarks.gpu.footprint"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, INSIDE, str(folder)], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    files = sorted(folder.glob("counts.*"), key=lambda file: int(file.suffix[1:]))
    return dict(zip(done.stdout.splitlines(), map(Counts.of_file, files), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(INSIDE, type=Path, help=argparse.SUPPRESS)
    inside = parser.parse_args().inside
    if inside is not None:
        run_inside(ctypes.CDLL(str(inside / "requests.so")), inside)
        return 0
    with tempfile.TemporaryDirectory(prefix="tensortap-footprint-") as folder:
        (_, first), *others = counted(Path(folder)).items()
    rows = [(name, *other.beside(first)) for name, other in others]
    print(table(("a tap", "lines of code", "lines of data"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

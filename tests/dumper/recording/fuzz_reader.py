"""Fuzzes the reader with atheris: ``python -m tests.dumper.recording.fuzz_reader [libFuzzer options]``.

Any error but FormatError, and any input that takes long or much memory, stops it and leaves the input behind.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["dumper"]):
    from tests.fuzz.streams import read_stream, without_checksums


def main() -> None:
    atheris.Setup(sys.argv, read_stream)
    with without_checksums():
        atheris.Fuzz()


if __name__ == "__main__":
    main()

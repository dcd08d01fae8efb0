"""``python -m dumper convert SRC DST``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dumper.convert.outcome import ConversionError, Outcome, listing, prepare_destination
from dumper.readers.sglang.dump import SGLangDump
from dumper.readers.streams.run import RunDirectory
from dumper.reading.open import open_run
from dumper.reading.protocol import Run, RunError
from dumper.storage.addresses import is_address, shown_address
from tensortap.printable import printable
from tensortap.progress import Advance, Progress, in_terminal, silent

FORMATS = ("run", "pt", "safetensors")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dumper convert",
        description="Write a run as SGLang's .pt files or as safetensors, or SGLang's .pt files as a run.",
        epilog="exit code: 0 all was converted, 1 something was left out (it is listed), 2 nothing could be done",
    )
    parser.add_argument("source", metavar="SRC", help="a run, or a directory of SGLang's .pt files")
    parser.add_argument("destination", metavar="DST", help="a directory that is empty or does not exist")
    parser.add_argument("--to", choices=FORMATS, help="default: a run from SGLang's .pt files, .pt files from all else")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        outcome = convert(arguments.source, arguments.destination, arguments.to, in_terminal())
    except (ConversionError, RunError, OSError, MemoryError) as error:
        print(f"dumper convert: {printable(error)}", file=sys.stderr)
        return 2
    print(f"{outcome.written} records written to {arguments.destination}")
    for line in listing(outcome.left_out):
        print(f"dumper convert: left out: {printable(line)}", file=sys.stderr)
    return 1 if outcome.left_out else 0


def convert(
    source: str | Path, destination: str | Path, wanted: str | None = None, progress: Progress = silent
) -> Outcome:
    """Convert a recording to the wanted format: ``run``, ``pt`` or ``safetensors``.

    Raises RunError when there is no recording, ConversionError when the destination cannot be used, or the source is
    in that format already or cannot be written in it.
    """
    if is_address(destination):
        raise ConversionError(
            f"{shown_address(str(destination))}: what is converted is written to a disk; copy it from there"
        )
    destination = Path(destination)
    opened = open_run(source, progress)
    is_dump = isinstance(opened, SGLangDump)
    wanted = wanted or ("run" if is_dump else "pt")
    if wanted == "pt" and is_dump:
        raise ConversionError(f"{opened.path} is in the format pt already")
    if wanted == "run" and not is_dump:
        raise ConversionError(_why_no_run(opened))
    prepare_destination(destination)
    with progress("converting", len(opened.records)) as advance:
        outcome = _write(opened, destination, wanted, advance)
    if isinstance(opened, SGLangDump):
        outcome.left_out[:0] = [problem.message for problem in opened.unnamed_files]
    return outcome


def _why_no_run(opened: Run) -> str:
    if isinstance(opened, RunDirectory):
        return f"{opened.path} is in the format run already"
    return (
        f"{opened.path} cannot be written as a run: only SGLang's .pt files can, and it is of another kind. "
        "The comparator reads it as it is; --to pt and --to safetensors write its records"
    )


def _write(opened: Run, destination: Path, wanted: str, advance: Advance) -> Outcome:
    if isinstance(opened, SGLangDump) and wanted == "run":
        from dumper.convert.to_run import write_run

        return write_run(opened, destination, advance)
    if wanted == "pt":
        from dumper.convert.to_pt import write_pt_files

        return write_pt_files(opened, destination, advance)
    from dumper.convert.to_safetensors import write_safetensors

    return write_safetensors(opened, destination, advance)

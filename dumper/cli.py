"""``python -m dumper ls | show | verify | repair | convert | ctl``."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumper.format.frames import FormatError
from dumper.printable import printable

if TYPE_CHECKING:
    from dumper.reading.protocol import Record, Run

_Command = Callable[[argparse.Namespace], int]


class UsageError(Exception):
    """The command cannot be carried out as it was given; the message says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """0: fine. 1: what was looked at is damaged, nothing was found, or a tap never fired (``--strict-taps``). 2: the
    command line is wrong or there is no readable run. 130: interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII alone
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return 130


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["ctl"]:
        from dumper.control.cli import main as control

        return control(arguments[1:])
    if arguments[:1] == ["convert"]:
        from dumper.convert.cli import main as convert

        return convert(arguments[1:])
    parsed = _parser().parse_args(arguments)
    command: _Command = parsed.command
    try:
        return command(parsed)
    except BrokenPipeError:
        # The reader of a pipe has seen enough; the interpreter's own flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, FormatError, OSError, ValueError, MemoryError, RecursionError) as error:
        _complain(parsed.name, error)
        return 2


class _Version(argparse.Action):
    """``--version``: looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        try:
            version = metadata.version("tensortap")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"tensortap {version}")
        parser.exit()


def _complain(command: str, what: object) -> None:
    """One line on standard error."""
    print(f"dumper {command}: {printable(what)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dumper", description="Look at recorded runs.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version of tensortap and end")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def add(name: str, command: _Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("run", type=Path, metavar="RUN", help="the run directory, TENSORTAP_DIR/TENSORTAP_RUN")
        return sub

    listing = add("ls", _list, "What is in a run: ranks, steps, records, taps, problems.")
    listing.add_argument("--records", action="store_true", help="one line per record")
    _add_selection(listing)
    listing.add_argument("--json", action="store_true", help="one JSON object per record instead of text")
    listing.add_argument("--strict-taps", action="store_true", help="exit code 1 when an installed tap never fired")
    show = add("show", _show, "Print records: what they are, and their values.")
    show.add_argument("names", nargs="*", metavar="NAME", help="names of records; none: all")
    _add_selection(show)
    show.add_argument("--elements", type=int, default=64, metavar="N", help="summarise larger tensors (default 64)")
    show.add_argument("--limit", type=int, default=20, metavar="N", help="print at most N records (default 20)")
    add("verify", _verify, "Check every byte of a run against its checksums.")
    add("repair", _repair, "Rebuild missing indexes; set aside what is damaged. Nothing is deleted.")
    commands.add_parser("convert", help="Convert from and to other formats (convert --help).", add_help=False)
    commands.add_parser("ctl", help="Change what a running process records (ctl --help).", add_help=False)
    return parser


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=int, help="records of this step")
    parser.add_argument("--rank", type=int, help="records of this rank")
    parser.add_argument("--filter", metavar="EXPR", help="for example 'layer_id in [0, 1]'")


def _open(path: Path) -> Run:
    from dumper.reading.open import open_run
    from dumper.reading.protocol import RunError

    if not path.is_dir():
        raise UsageError(f"{path} is no directory; give the directory of a run")
    try:
        return open_run(path)
    except RunError as error:
        raise UsageError(str(error)) from None


def _selected(run: Run, arguments: argparse.Namespace, names: list[str]) -> list[Record]:
    from dumper.rules.expressions import Expression

    wanted = Expression(arguments.filter) if arguments.filter else None
    known = {record.name for record in run.records} if names else set()
    for name in names:
        if name not in known:
            raise UsageError(_unknown_name(name, known))
    return [
        record
        for record in run.select(step=arguments.step, rank=arguments.rank)
        if (not names or record.name in names) and (wanted is None or wanted.holds(_values(record)))
    ]


def _values(record: Record) -> dict[str, Any]:
    """What a filter looks at."""
    return {**record.tags, "name": record.name, "step": record.step, "rank": record.rank}


def _unknown_name(name: str, known: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:5]
    hint = f"; there are {', '.join(near)}" if near else "; the run holds no records"
    return f"nothing named {name!r} in the run{hint}"


def _list(arguments: argparse.Namespace) -> int:
    from dumper.reading import listing

    run = _open(arguments.run)
    if arguments.json:
        for record in _selected(run, arguments, []):
            print(json.dumps(listing.as_json(record)))
    elif arguments.records:
        for record in _selected(run, arguments, []):
            print(listing.headline(record))
    else:
        listing.print_run(run, _selected(run, arguments, []))
    for problem in run.problems:
        _complain("ls", problem.message)
    silent = run.silent_taps if arguments.strict_taps else ()
    for tap in silent:
        _complain("ls", f"tap {tap} never fired")
    return 1 if silent else 0


def _show(arguments: argparse.Namespace) -> int:
    from dumper.reading import listing

    run = _open(arguments.run)
    records = _selected(run, arguments, arguments.names)
    for record in records[: arguments.limit]:
        print(listing.described(record, arguments.elements))
    if len(records) > arguments.limit:
        print(f"… and {len(records) - arguments.limit} more; narrow them down or give --limit", file=sys.stderr)
    for problem in run.problems:
        _complain("show", problem.message)
    if not records:
        print("dumper show: no record fits", file=sys.stderr)
    return 0 if records else 1


def _verify(arguments: argparse.Namespace) -> int:
    from dumper.readers.streams.repair import verify_run

    report = verify_run(arguments.run)
    for line in report.lines:
        print(printable(line))
    return 0 if report.intact else 1


def _repair(arguments: argparse.Namespace) -> int:
    from dumper.readers.streams.repair import repair_run

    for line in repair_run(arguments.run):
        print(printable(line))
    return 0

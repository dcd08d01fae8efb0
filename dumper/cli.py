"""``python -m dumper ls | show | verify | repair | convert | ctl``."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tensortap.command_line import SHELLS, PrintCompletion, PrintVersion, drop_output
from tensortap.lost_pages import lost_pages, watching
from tensortap.printable import printable

if TYPE_CHECKING:
    from dumper.reading.indexing import Index
    from dumper.reading.protocol import Record, Run

_Command = Callable[[argparse.Namespace], int]
_LINES_AT_ONCE = 1024


class UsageError(Exception):
    """The command cannot be carried out as it was given; the message says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """0: fine. 1: what was looked at is damaged, nothing was found, or a tap never fired (``--strict-taps``). 2: the
    command line is wrong or there is no readable run. 130: interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII alone
    lost = lost_pages()
    try:
        with watching(everywhere=True):
            code = _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return 130
    if lost_pages() != lost:
        print("dumper: a file was cut while it was read, and what was read of it is wrong; try again", file=sys.stderr)
        return code or 1
    return code


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["ctl"]:
        from dumper.control.cli import main as control

        return control(arguments[1:])
    if arguments[:1] == ["convert"]:
        from dumper.convert.cli import main as convert

        return convert(arguments[1:])
    parsed = _parser(arguments[:1]).parse_args(arguments)
    command: _Command = parsed.command
    try:
        return command(parsed)
    except BrokenPipeError:
        # The reader of a pipe has seen enough; the interpreter's own flush must not complain either.
        drop_output()
        return 0
    except (UsageError, OSError, ValueError, MemoryError, RecursionError) as error:
        _complain(parsed.name, error)
        return 2
    except Exception as error:
        from dumper.format.frames import FormatError

        if not isinstance(error, FormatError):
            raise
        _complain(parsed.name, error)
        return 2


def _complain(command: str, what: object) -> None:
    """One line on standard error."""
    print(f"dumper {command}: {printable(what)}", file=sys.stderr)


def _parser(begin: Sequence[str] = ()) -> argparse.ArgumentParser:
    """``begin``: of a command line that will be parsed, its command."""
    parser = argparse.ArgumentParser(prog="python -m dumper", description="Look at recorded runs.")
    parser.add_argument("--version", action=PrintVersion, nargs=0, help="print the version of tensortap and end")
    parser.add_argument(
        "--print-completion", choices=SHELLS, action=PrintCompletion, help="print a completion script for a shell"
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def add(name: str, command: _Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument(
            "run", metavar="RUN", help="the run directory, TENSORTAP_DIR/TENSORTAP_RUN, or an address (s3://…)"
        )
        return sub

    listing = add("ls", _list, "What is in a run: ranks, steps, records, taps, problems.")
    listing.add_argument("--records", action="store_true", help="one line per record")
    _add_selection(listing)
    _add_output(listing, "text, or JSON: one object for the run, with --records one for each record")
    listing.add_argument("--json", action="store_true", help="the same as --records --output json")
    listing.add_argument("--strict-taps", action="store_true", help="exit code 1 when an installed tap never fired")
    show = add("show", _show, "Print records: what they are, and their values; of two runs side by side.")
    show.add_argument(
        "names",
        nargs="*",
        metavar="[RUN2] NAME",
        help="a second run, to be shown beside the first; names of records (none: all), with an index if only a part "
        "is wanted: 'x[0,:5]'",
    )
    _add_output(show, "text, or one JSON object for each record")
    _add_selection(show)
    show.add_argument("--elements", type=int, default=64, metavar="N", help="summarise larger tensors (default 64)")
    show.add_argument("--limit", type=int, default=20, metavar="N", help="print at most N records (default 20)")
    add("verify", _verify, "Check every byte of a run against its checksums.")
    add("repair", _repair, "Rebuild missing indexes; set aside what is damaged. Nothing is deleted.")
    if commands.choices.keys() & set(begin):
        return parser
    from dumper.control.cli import build_parser as control
    from dumper.convert.cli import build_parser as convert

    # They parse for themselves; here they are for the help and for completion.
    commands.add_parser(
        "convert", help="Convert from and to other formats (convert --help).", add_help=False, parents=[convert()]
    )
    commands.add_parser(
        "ctl", help="Change what a running process records (ctl --help).", add_help=False, parents=[control()]
    )
    return parser


def _add_output(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--output", choices=("text", "json"), default="text", help=text)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=int, help="records of this step")
    parser.add_argument("--rank", type=int, help="records of this rank")
    parser.add_argument("--filter", metavar="EXPR", help="for example 'layer_id in [0, 1]'")


def _open(path: str) -> Run:
    from dumper.reading.open import open_run
    from dumper.reading.protocol import RunError
    from dumper.storage.addresses import is_address
    from tensortap.progress import in_terminal

    if not is_address(path) and not Path(path).is_dir():
        raise UsageError(f"{path} is no directory; give the directory of a run")
    try:
        return open_run(path, in_terminal())
    except RunError as error:
        raise UsageError(str(error)) from None


class _Wanted(NamedTuple):
    """A name that was asked for, and the part of its values."""

    name: str
    part: Index | None

    def fits(self, name: str) -> bool:
        """Whether it asks for this name, or for one whose value was recorded in parts."""
        return name == self.name or name.startswith(f"{self.name}.")


def _wanted(runs: Sequence[Run], names: Sequence[str]) -> list[_Wanted]:
    from dumper.reading.indexing import split_name

    known = {record.name for run in runs for record in run.records} if names else set()
    wanted = [_Wanted(*split_name(name, known)) for name in names]
    for one in wanted:
        if not any(map(one.fits, known)):
            raise UsageError(_unknown_name(one.name, known))
    return wanted


def _selected(run: Run, arguments: argparse.Namespace, names: Sequence[_Wanted] = ()) -> list[Record]:
    from dumper.reading.record_lines import filtered_values
    from dumper.rules.expressions import Expression

    expression = Expression(arguments.filter) if arguments.filter else None
    return [
        record
        for record in run.select(step=arguments.step, rank=arguments.rank)
        if (not names or any(wanted.fits(record.name) for wanted in names))
        and (expression is None or expression.holds(filtered_values(record)))
    ]


def _index_for(record: Record, names: Sequence[_Wanted]) -> Index | None:
    """The part that was asked for; a name itself goes before one that it is a part of."""
    fitting = [wanted for wanted in names if wanted.fits(record.name)]
    exact = [wanted for wanted in fitting if wanted.name == record.name]
    return (exact or fitting)[0].part if fitting else None


def _unknown_name(name: str, known: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:5]
    hint = f"; there are {', '.join(near)}" if near else "; the run holds no records"
    return f"nothing named {name!r} in the run{hint}"


def _list(arguments: argparse.Namespace) -> int:
    from dumper.reading import listing
    from dumper.reading.record_lines import record_lines
    from dumper.rules.expressions import Expression
    from tensortap.progress import in_terminal

    run = _open(arguments.run)
    as_json = arguments.json or arguments.output == "json"
    if arguments.records or arguments.json:
        expression = Expression(arguments.filter) if arguments.filter else None
        lines = record_lines(run, json_lines=as_json, step=arguments.step, rank=arguments.rank, expression=expression)
        while piece := list(itertools.islice(lines, _LINES_AT_ONCE)):
            print("\n".join(piece))
    elif as_json:
        print(json.dumps(listing.summary_as_json(run)))
    else:
        chosen = any(given is not None for given in (arguments.step, arguments.rank, arguments.filter))
        listing.print_run(run, _selected(run, arguments) if chosen else None, in_terminal())
    _complain_of_problems("ls", run)
    if not arguments.strict_taps:
        return 0
    for tap in run.silent_taps:
        _complain("ls", f"tap {tap} never fired")
    left_out = any(problem.kind == "left_out" for problem in run.problems)
    return 1 if run.silent_taps or left_out else 0


def _complain_of_problems(command: str, run: Run, prefix: str = "") -> None:
    for problem in run.problems:
        _complain(command, prefix + problem.message)


def _show(arguments: argparse.Namespace) -> int:
    run = _open(arguments.run)
    names = list(arguments.names)
    if names and names[0] not in {record.name for record in run.records} and _is_run(names[0]):
        return _show_both(run, _open(names[0]), names[1:], arguments)
    from dumper.reading import contents, listing
    from dumper.reading.record_lines import as_json

    wanted = _wanted([run], names)
    records = _selected(run, arguments, wanted)
    for record in records[: arguments.limit]:
        index = _index_for(record, wanted)
        if arguments.output == "json":
            print(json.dumps({**as_json(record), **contents.as_plain(record, arguments.elements, index)}))
        else:
            print(listing.described(record, arguments.elements, index))
    _complain_of_rest(len(records), arguments.limit)
    _complain_of_problems("show", run)
    return 0 if records else 1


def _is_run(text: str) -> bool:
    from dumper.storage.addresses import is_address

    return is_address(text) or Path(text).is_dir()


def _show_both(run: Run, other: Run, names: Sequence[str], arguments: argparse.Namespace) -> int:
    from dumper.reading import contents, side_by_side
    from dumper.reading.text_table import output_console

    wanted = _wanted([run, other], names)
    pairs = side_by_side.pair_up(_selected(run, arguments, wanted), _selected(other, arguments, wanted))
    width = min(output_console().width, 2 * contents.LINE_WIDTH)
    for pair in pairs[: arguments.limit]:
        record = pair.left or pair.right
        assert record is not None
        index = _index_for(record, wanted)
        if arguments.output == "json":
            print(json.dumps(side_by_side.as_json_pair(pair, arguments.elements, index)))
        else:
            print(side_by_side.described_pair(pair, arguments.elements, index, width))
    _complain_of_rest(len(pairs), arguments.limit)
    for name, side in (("first", run), ("second", other)):
        _complain_of_problems("show", side, f"the {name} run: ")
    return 0 if pairs else 1


def _complain_of_rest(found: int, limit: int) -> None:
    if found > limit:
        _complain("show", f"… and {found - limit} more; narrow them down or give --limit")
    if not found:
        _complain("show", "no record fits")


def _verify(arguments: argparse.Namespace) -> int:
    from dumper.format.checking import begin

    # First, and what follows is imported meanwhile.
    folder = Path(arguments.run)
    begun = begin(folder)
    from dumper.readers.streams.verify import verify_run
    from dumper.storage.addresses import place_of
    from tensortap.progress import in_terminal

    place = place_of(arguments.run)
    report = verify_run(place, in_terminal(), begun if place == folder else None)
    for line in report.lines:
        print(printable(line))
    return 0 if report.intact else 1


def _repair(arguments: argparse.Namespace) -> int:
    from dumper.readers.streams.repair import repair_run
    from dumper.storage.addresses import is_address, shown_address
    from tensortap.progress import in_terminal

    if is_address(arguments.run):
        raise UsageError(f"{shown_address(arguments.run)}: a run is repaired on a disk; copy it there")
    for line in repair_run(Path(arguments.run), in_terminal()):
        print(printable(line))
    return 0

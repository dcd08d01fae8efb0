"""``python -m dumper ctl RUN …``: look at and change what a running process records."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dumper.control.changes import PLACES, Changes, describe
from dumper.control.controller import Agreed, ControlError, Pending, Rank, change, living, pending_changes, read_ranks
from tensortap.printable import printable

_DESCRIPTION = """Change what a running process records, at the same step on every rank.
Works through files in the run directory: no port is opened, and the ranks may run on several machines."""


def main(argv: list[str] | None = None) -> int:
    """0: done. 1: nothing was changed, with the reason. 2: the command line is wrong."""
    # The defaults are here, not in the parser: options may come before the action and after it, and a default of the
    # one place would undo what was said in the other.
    defaults = argparse.Namespace(json=False, timeout=30.0, wait=0.0)
    arguments = build_parser().parse_args(argv, defaults)
    try:
        if arguments.action == "status":
            return _status(arguments.run, as_json=arguments.json)
        changes = _changes(arguments)
        agreed = change(arguments.run, changes, timeout=arguments.timeout, report=_note)
    except ValueError as error:
        _note(error)
        return 2
    except (ControlError, OSError) as error:
        _note(error)
        return 1
    if arguments.json:
        print(json.dumps(asdict(agreed)))
    else:
        print(printable(_describe_agreement(changes, agreed)))
    return _wait(arguments.run, agreed, arguments.wait) if arguments.wait else 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument("--json", action="store_true", help="print JSON instead of text")
    options.add_argument("--timeout", type=float, help="seconds to wait for the ranks (default 30)")
    options.add_argument(
        "--wait", type=float, metavar="SECONDS", help="wait so long until every rank has made the change"
    )
    parser = argparse.ArgumentParser(
        prog="python -m dumper ctl",
        description=_DESCRIPTION,
        formatter_class=argparse.RawTextHelpFormatter,
        parents=[options],
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run directory, TENSORTAP_DIR/TENSORTAP_RUN")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, help_text, value in (
        ("status", "what each rank records, and where it stands", None),
        ("on", "record", None),
        ("off", "stop recording", None),
        ("filter", "record only what an expression over name and tags lets through; 'all' for everything", "EXPR"),
        ("level", "full, sample, stats or hash, or rules as in TENSORTAP_LEVEL", "LEVEL"),
        ("steps", "record the next N steps, or those of a rule ('10-20', 'every 10', 'all'), and be on", "N|RULE"),
        ("reset", "back to the settings that the processes started with", None),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text, parents=[options])
        if value is not None:
            action.add_argument("value", nargs="+", metavar=value)
    return parser


def _changes(arguments: argparse.Namespace) -> Changes:
    action: str = arguments.action
    if action in ("on", "off"):
        return {"enable": action == "on"}
    if action == "reset":
        return {"reset": True}
    value = " ".join(arguments.value).strip()
    if action == "filter":
        return {"filter": None if value == "all" else value}
    if action == "level":
        return {"level": value}
    if value.isdigit() and int(value) == 0:
        raise ValueError("steps 0 records nothing; to record nothing say off")
    return {"enable": True, "steps": f"next {value}" if value.isdigit() else value}


def _describe_agreement(changes: Changes, agreed: Agreed) -> str:
    steps = sorted(set(agreed.effective.values()))
    where = f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(map(str, steps))} (by replica)"
    count = len(agreed.ranks)
    return f"{describe(changes)}: from {where} on, on {'the one rank' if count == 1 else f'all {count} ranks'}"


def _wait(run: Path, agreed: Agreed, seconds: float) -> int:
    """Until every rank has made the change; 1 when some have not in time (it stays agreed)."""
    deadline = time.monotonic() + seconds
    while True:
        late = [rank.rank for rank in living(read_ranks(run)) if rank.applied < agreed.generation]
        if not late:
            return 0
        if time.monotonic() > deadline:
            print(
                f"dumper ctl: agreed, but not reached yet by rank {', '.join(map(str, late))}:"
                " no pass has been made since; it holds from the next one",
                file=sys.stderr,
            )
            return 1
        time.sleep(0.05)


def _status(run: Path, as_json: bool) -> int:
    if not run.is_dir():
        _note(f"{run}: no such run directory")
        return 1
    ranks = read_ranks(run)
    alive = {rank.rank for rank in living(ranks)}
    pending = {rank.rank: pending_changes(run, rank) for rank in ranks if rank.rank in alive}
    if as_json:
        told = [
            {
                **asdict(rank),
                "alive": rank.rank in alive,
                "pending": [asdict(change) for change in pending.get(rank.rank, ())],
            }
            for rank in ranks
        ]
        print(json.dumps(told))
    elif not ranks:
        print(f"{printable(run)}: no process can be controlled through this run")
    else:
        _print_table(ranks, pending)
    return 0 if ranks else 1


def _print_table(ranks: list[Rank], pending: dict[int, list[Pending]]) -> None:
    """``pending``: what living ranks have agreed to and not reached."""
    from dumper.reading.text_table import TextTable, output_console

    headings = ("rank", "process", "step", "steps/s", "recording", "last change", "agreed, not reached", "settings")
    table = TextTable("Ranks", headings, frozenset({"rank", "step", "steps/s"}))
    for rank in ranks:
        settings: dict[str, Any] = dict(rank.state.get("settings", {}))
        recording = "on" if settings.pop("enable", False) else "off"
        table.add(
            str(rank.rank),
            f"{rank.pid} on {rank.host}",
            "none yet" if rank.step < 0 else str(rank.step),
            str(rank.state["steps_per_second"]),
            recording if rank.rank in pending else "ended",
            "none" if rank.applied_at is None else f"{rank.applied} at step {rank.applied_at}",
            "; ".join(f"{describe(change.changes)} from step {change.step}" for change in pending.get(rank.rank, ()))
            or "-",
            _not_usual(settings),
        )
    table.print(output_console())


def _not_usual(settings: dict[str, Any]) -> str:
    """The settings that are not what they are by themselves, in one line; ``RUN`` says where the files are."""
    from dumper.settings import Settings

    usual = Settings()
    return ", ".join(
        f"{key} {value}"
        for key, value in settings.items()
        if key not in PLACES and value not in ("", "all") and value != getattr(usual, key, None)
    )


def _note(what: object) -> None:
    print(f"dumper ctl: {printable(what)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

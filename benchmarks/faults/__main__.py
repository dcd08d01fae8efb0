"""Measure the comparator on clean pairs and on planted faults.

    python -m benchmarks.faults record [--engine NAME] [--what clean|faults] [--only TEXT] [--root DIR]
    python -m benchmarks.faults judge  [--pairs N] [--root DIR]
    python -m benchmarks.faults table  [--write] [--root DIR]

``record`` makes the recordings that are not there yet. ``judge`` compares them and keeps what the comparator says in
``DIR/outcomes.jsonl``. ``table`` prints it, and with ``--write`` puts it into docs/faults.md. Real servers take a
minute for each layout of each model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.faults.engines.registry import NAMES

ROOT = Path("out/faults")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="where the recordings are (default: out/faults)")
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="make the recordings that are not there yet")
    record.add_argument("--engine", choices=NAMES, action="append", help="of this engine (default: of all)")
    record.add_argument("--what", choices=("clean", "faults"), help="only these")
    record.add_argument("--only", default="", help="only recordings whose path has this text")
    judge = commands.add_parser("judge", help="compare what is recorded")
    judge.add_argument("--what", choices=("clean", "faults"), help="only these")
    judge.add_argument("--only", default="", help="only pairs whose paths have this text")
    judge.add_argument("--pairs", type=int, default=40, help="clean pairs of a family, chosen by a seed (default: 40)")
    table = commands.add_parser("table", help="print what was found")
    table.add_argument("--write", action="store_true", help="put it into docs/faults.md")
    arguments = parser.parse_args()
    if arguments.command == "record":
        from benchmarks.faults.recording import record_all

        what = (arguments.what,) if arguments.what else ("clean", "faults")
        record_all(arguments.root, arguments.engine or NAMES, what, arguments.only)
    elif arguments.command == "judge":
        from benchmarks.faults.outcomes import judge_all

        what = (arguments.what,) if arguments.what else ("clean", "faults")
        judge_all(arguments.root, what, arguments.pairs, arguments.only)
    else:
        from benchmarks.faults.tables import print_tables

        print_tables(arguments.root, arguments.write)


if __name__ == "__main__":
    main()

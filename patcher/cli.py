"""The command line: ``check``, ``diff``, ``run``, ``list``, ``try``, ``suggest``, ``configs``, ``schema``."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patcher.check import Checked, check_configs, diff_text
from patcher.errors import PatchError
from patcher.source.modules import ModuleFinder
from tensortap.command_line import SHELLS, PrintCompletion, PrintVersion, drop_output, say, suggest_values
from tensortap.printable import printable_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 well, 1 an edit does not land, 130 Ctrl-C, 2 anything else.

    Where the reader of the output has gone (``| head -1``), it is that of the answer if it is known, else 2.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command: list[str] = []
    if given[:1] == ["run"] and "--" in given:
        command = given[given.index("--") + 1 :]
        given = given[: given.index("--")]
    parser = _parser()
    options = parser.parse_args(given)
    code = 2
    try:
        with _rare_collection():
            code = _run(options, command) if options.action == "run" else _ACTIONS[options.action](options)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
    except KeyboardInterrupt:
        return 130
    except PatchError as error:
        say(f"patcher: {error}", error=True)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"patcher: {where}{error.strerror or error}", error=True)
        drop_output()
        return 2
    return code


@contextlib.contextmanager
def _rare_collection() -> Iterator[None]:
    """Syntax trees are very many small objects that stay; looking for garbage among them takes a third of the time."""
    before = gc.get_threshold()
    gc.set_threshold(500_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m patcher", description="Put dump calls into a program's own source from a config file."
    )
    parser.add_argument("--version", action=PrintVersion, nargs=0, help="print the version of tensortap and end")
    parser.add_argument(
        "--print-completion", choices=SHELLS, action=PrintCompletion, help="print a completion script for a shell"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="show where each edit would land, or why not; runs nothing")
    diff = actions.add_parser("diff", help="print the unified diff of the patched source")
    run = actions.add_parser("run", help="run a command with the configs active in it and in its children")
    for action in (check, diff, run):
        config = action.add_argument(
            "-c",
            "--config",
            action="append",
            required=True,
            metavar="CONFIG",
            help="a file, or the name of a config that ships, such as sglang/qwen3",
        )
        suggest_values(config, _shipped_names)
    places = actions.add_parser("list", help="list the places of a function, class or module that can be tapped")
    trial = actions.add_parser("try", help="show what a pattern matches in a function, class, module or file")
    trial.add_argument("-e", "--pattern", required=True, metavar="PATTERN", help="as an edit has it after 'match:'")
    suggest = actions.add_parser("suggest", help="write a config for a class or a model file")
    for action in (places, trial, suggest):
        action.add_argument("target", metavar="TARGET", help="a dotted name, or the path of a Python file")
    for action in (check, diff, places, trial, suggest):
        action.add_argument(
            "--source",
            action="append",
            default=[],
            type=Path,
            metavar="PATH",
            help="look for the target in an unpacked source tree or a wheel first",
        )
    for action in (check, places, trial):
        action.add_argument("--json", action="store_true", help="print JSON")
    actions.add_parser("configs", help="list the configs that ship")
    actions.add_parser("schema", help="print the JSON schema of the config format")
    run.add_argument("--record", metavar="DIR", help="record, into this folder (TENSORTAP_ENABLE, TENSORTAP_DIR)")
    run.add_argument("--strict", action="store_true", help="a tap that would stay silent raises (TENSORTAP_STRICT)")
    run.usage = "python -m patcher run -c CONFIG [-c CONFIG ...] [--record DIR] [--strict] -- COMMAND ..."
    return parser


def _check(options: argparse.Namespace) -> int:
    checked = check_configs(options.config, options.source, [os.getcwd()])
    if options.json:
        print(json.dumps(checked.as_dict(), indent=2))
    else:
        _print_report(checked)
    return 0 if checked.ok else 1


def _print_report(checked: Checked) -> None:
    for note in checked.plan.notes:
        say(f"{'ERROR' if note.error else 'warn ' if note.warning else 'note '}  {note.message}")
    for module in checked.modules:
        for landing in module.landings:
            name = f"{landing.target}#{landing.edit}"
            if landing.error:
                say(f"{'note ' if landing.optional else 'ERROR'}  {name}  {landing.error}")
            else:
                where = ", ".join(f"{module.file}:{line}" for line in landing.lines)
                say(f"ok     {name}  {landing.summary}  ->  {where}")
        for problem in module.problems:
            say(f"ERROR  {problem}")
    count = sum(len(module.landings) for module in checked.modules)
    say(f"{count} edits in {len(checked.modules)} modules, {len(checked.errors)} errors")


def _diff(options: argparse.Namespace) -> int:
    checked = check_configs(options.config, options.source, [os.getcwd()])
    text = diff_text(checked)
    # What goes into a file or to patch is left as it is.
    sys.stdout.write(printable_lines(text) if sys.stdout.isatty() else text)
    for message in checked.errors:
        say(f"patcher: {message}", error=True)
    return 0 if checked.ok else 1


def _list(options: argparse.Namespace) -> int:
    from patcher.source.locate import functions_of
    from patcher.tappable import function_index, tappable_places

    finder = _finder(options)
    found: list[dict[str, Any]] = []
    for resolved in functions_of(options.target, finder):
        module = finder.find(resolved.module)
        assert module is not None
        places = tappable_places(function_index(module, resolved.path))
        found.append({"target": resolved.name, "file": module.file, "places": [asdict(place) for place in places]})
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for function in found:
        say(f"{function['target']}  ({function['file']})")
        for place in function["places"]:
            values = f"   {', '.join(place['values'])}" if place["values"] else ""
            times = f"   (nth: {place['nth'] or 'all'}, {place['count']} places)" if place["count"] > 1 else ""
            say(f"  {place['line']:>6}  {place['kind']:<10}  {place['form']}: {place['pattern']}{times}{values}")
    return 0


def _try(options: argparse.Namespace) -> int:
    from patcher.trial import try_pattern

    trial = try_pattern(options.pattern, options.target, _finder(options))
    if options.json:
        print(json.dumps(asdict(trial), indent=2))
        return 0 if trial.matches else 1
    for match in trial.matches:
        say(f"{match.file}:{match.line}  {match.function}  {match.code}")
        for name, code in match.captures.items():
            say(f"    ${name} = {code}")
    if trial.matches:
        functions = Counter(match.function for match in trial.matches)
        for function, count in functions.items():
            if count > 1:
                say(f"{function}: {count} places; an edit says which with 'inside' or 'nth'")
        say(f"places: {len(trial.matches)}, functions: {len(functions)}")
        return 0
    say(f"patcher: {options.pattern!r} matches nothing in {options.target}", error=True)
    for place in trial.nearest:
        say(f"  nearest: {place.file}:{place.line}  {place.function}  {place.code}", error=True)
    return 1


def _suggest(options: argparse.Namespace) -> int:
    from patcher.suggest import suggest_config

    sys.stdout.write(suggest_config(options.target, _finder(options)))
    return 0


def _finder(options: argparse.Namespace) -> ModuleFinder:
    """Finds what ``--source`` names first, then what lies here or beside a file that is the target."""
    from patcher.source.locate import import_folder, is_importable

    finder = ModuleFinder(options.source, [os.getcwd()])
    file = Path(options.target)
    if options.target.endswith(".py") and file.is_file() and not is_importable(file, finder):
        return ModuleFinder(options.source, [os.getcwd(), import_folder(file)])
    return finder


def _configs(options: argparse.Namespace) -> int:
    from patcher.config.shipped import shipped_configs, summary

    configs = shipped_configs()
    width = max(map(len, configs))
    for name, file in configs.items():
        say(f"{name:<{width}}  {summary(file)}")
    return 0


def _shipped_names() -> list[str]:
    from patcher.config.shipped import shipped_configs

    return list(shipped_configs())


def _schema(options: argparse.Namespace) -> int:
    from patcher.config.format import config_schema

    print(json.dumps(config_schema(), indent=2))
    return 0


def _run(options: argparse.Namespace, command: list[str]) -> int:
    from patcher.launch import launch

    if not command:
        raise PatchError("run: no command; write it after '--', as in: run -c CONFIG -- python script.py")
    return launch(options.config, command, options.record, strict=options.strict)


_ACTIONS = {
    "check": _check,
    "diff": _diff,
    "list": _list,
    "try": _try,
    "suggest": _suggest,
    "configs": _configs,
    "schema": _schema,
}

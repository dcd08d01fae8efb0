"""Completion scripts for shells, made from the flags of a parser: static text, nothing runs while completing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Flag:
    """A flag of a command."""

    names: tuple[str, ...]
    values: tuple[str, ...]
    """Those that it may have, or that are suggested; empty where any is allowed."""
    files: bool
    """Whether the value may be a file too."""

    @classmethod
    def of(cls, action: argparse.Action) -> _Flag:
        """The flag of a parser's action."""
        suggested = getattr(action, "suggested_values", None)
        values = suggested() if suggested is not None else action.choices or ()
        return cls(tuple(action.option_strings), tuple(map(str, values)), suggested is not None)


@dataclass(frozen=True)
class _Flags:
    """The flags that can follow a path of subcommands."""

    path: tuple[str, ...]
    flags: tuple[_Flag, ...]
    commands: tuple[str, ...]
    """Subcommands that can follow."""


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of ``parser`` for ``bash``, ``zsh`` or ``fish``; to be sourced. It completes the command that is
    called like the last word of ``parser.prog``."""
    command = parser.prog.split()[-1]
    paths = list(_walk(parser, ()))
    if shell == "fish":
        return "\n".join(line for flags in paths for line in _fish_lines(command, flags))
    script = _bash_script(command, paths)
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if shell == "zsh" else script


def _walk(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[_Flags]:
    flags = tuple(
        _Flag.of(action) for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS
    )
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    commands = {name: inner for action in subparsers for name, inner in action.choices.items()}
    yield _Flags(path, flags, tuple(commands))
    for name, inner in commands.items():
        yield from _walk(inner, (*path, name))


def _bash_script(command: str, paths: Sequence[_Flags]) -> str:
    function = f"_{command}_complete"
    cases = "\n".join(
        f"    {'|'.join(flag.names)}) COMPREPLY=($(compgen {'-f ' if flag.files else ''}-W "
        f"'{' '.join(flag.values)}' -- \"$now\")); return;;"
        for flag in dict.fromkeys(flag for flags in paths for flag in flags.flags)
        if flag.values
    )
    # The path of subcommands is found among the words before; the longest that fits is the last that is tried.
    found = "\n".join(
        f"  {_bash_test(flags.path)}flags='{' '.join(name for flag in flags.flags for name in flag.names)}' "
        f"commands='{' '.join(flags.commands)}'"
        for flags in paths
    )
    return f"""{function}() {{
  local now="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" flags commands
  local words=" ${{COMP_WORDS[*]:1:COMP_CWORD-1}} "
  case "$before" in
{cases}
  esac
{found}
  case "$now" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$now"));;
    *) COMPREPLY=($(compgen -W "$commands" -- "$now") $(compgen -f -- "$now"));;
  esac
}}
complete -o filenames -F {function} {command}"""


def _bash_test(path: tuple[str, ...]) -> str:
    words = "*".join(f'" {name} "' for name in path)
    return f'[[ "$words" == *{words}* ]] && ' if path else ""


def _fish_lines(command: str, flags: _Flags) -> Iterator[str]:
    where = f" -n '__fish_seen_subcommand_from {flags.path[-1]}'" if flags.path else ""
    if flags.commands and not flags.path:
        yield f"complete -c {command} -n __fish_use_subcommand -a '{' '.join(flags.commands)}'"
    for flag in flags.flags:
        shown = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
        values = f" {'-r' if flag.files else '-x'} -a '{' '.join(flag.values)}'" if flag.values else ""
        yield f"complete -c {command}{where} {shown}{values}"

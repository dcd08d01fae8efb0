"""Completion scripts for shells, made from the flags of a command line: static text, nothing runs while completing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

SHELLS = ("bash", "zsh", "fish")


class PrintCompletion(argparse.Action):
    """``--print-completion SHELL``: print the script and end."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        print(completion_script(parser, str(values)))
        parser.exit()


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of ``parser`` for ``bash``, ``zsh`` or ``fish``; to be sourced."""
    command = parser.prog
    flags = [
        (action.option_strings, tuple(map(str, action.choices or ())))
        for action in parser._actions
        if action.option_strings and action.help != argparse.SUPPRESS
    ]
    if shell == "fish":
        return "\n".join(
            f"complete -c {command} {_fish_names(names)}" + (f" -x -a '{' '.join(choices)}'" if choices else "")
            for names, choices in flags
        )
    function = f"_{command}_complete"
    cases = "\n".join(
        f"    {'|'.join(names)}) COMPREPLY=($(compgen -W '{' '.join(choices)}' -- \"$now\")); return;;"
        for names, choices in flags
        if choices
    )
    names = " ".join(name for names, _ in flags for name in names)
    script = f"""{function}() {{
  local now="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  case "$before" in
{cases}
  esac
  case "$now" in
    -*) COMPREPLY=($(compgen -W '{names}' -- "$now"));;
    *) COMPREPLY=($(compgen -f -- "$now"));;
  esac
}}
complete -o filenames -F {function} {command}"""
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if shell == "zsh" else script


def _fish_names(names: Sequence[str]) -> str:
    return " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in names)

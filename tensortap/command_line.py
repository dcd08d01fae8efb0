"""What the command lines share: ``--version``, ``--print-completion``, and how they print."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from tensortap.compiled import missing
from tensortap.printable import printable_lines

SHELLS = ("bash", "zsh", "fish")


def say(text: str, *, error: bool = False) -> None:
    """Print lines, on stderr if it is an error; what is not printable is escaped (``\\x1b``)."""
    print(printable_lines(text), file=sys.stderr if error else sys.stdout)


def drop_output() -> None:
    """Let what is still to be written to standard output go nowhere; the interpreter flushes it once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end(code: int) -> None:
    """End the process with an exit code, and do not take apart first what it has made: that takes as long as a fiftieth
    of a comparison. One that has threads, or whose output cannot be written, ends as any other."""
    threads = sys.modules.get("threading")
    if threads is None or threads.active_count() == 1:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


class PrintVersion(argparse.Action):
    """``--version``: looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        try:
            version = metadata.version("tensortap")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"tensortap {version}")
        if without := missing():
            print(f"without the compiled modules {', '.join(without)}: results are the same, and come more slowly")
        parser.exit()


class PrintCompletion(argparse.Action):
    """``--print-completion SHELL``: print the script and end."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        from tensortap.completion import completion_script  # hardly any start prints one

        print(completion_script(parser, str(values)))
        parser.exit()


def suggest_values(action: argparse.Action, values: Callable[[], Iterable[str]]) -> None:
    """Have completion offer values of a flag that may also be files; they are asked for when a script is made."""
    action.suggested_values = values  # type: ignore[attr-defined]

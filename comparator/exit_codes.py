"""What ends a command other than with a verdict: one line on standard error and exit code 2, without a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from comparator.errors import ComparatorError
from dumper.reading.protocol import RunError
from tensortap.command_line import drop_output
from tensortap.lost_pages import watching
from tensortap.printable import printable

NO_VERDICT = 2
INTERRUPTED = 128 + signal.SIGINT


def run_command(command: Callable[[], int]) -> int:
    """Run a command to its exit code.

    Where the reader of the output has gone (``| head -1``), the command ends quietly with 2, as there is no verdict.
    """
    _let_any_name_be_printed()
    try:
        with watching(everywhere=True):
            code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        return NO_VERDICT
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("TENSORTAP_TRACEBACK"):
            raise
        _say(_what_happened(error))
        return NO_VERDICT
    return code


def _what_happened(error: Exception) -> str:
    if isinstance(error, ComparatorError | RunError):
        return str(error)
    if isinstance(error, MemoryError):
        reason = f": {error}" if str(error) else ""
        return f"out of memory{reason}; compare less at once, with --filter or --start-step"
    if isinstance(error, OSError):
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    return f"internal error: {type(error).__name__}: {error} (TENSORTAP_TRACEBACK=1 shows where)"


def _say(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"comparator: {printable(message)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        drop_output()


def _let_any_name_be_printed() -> None:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(OSError, ValueError):
                reconfigure(errors="backslashreplace")

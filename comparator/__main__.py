"""``python -m comparator``."""

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Sequence

# What a comparison makes has hardly any circles; to look for them every 700 objects takes a tenth of its time.
gc.set_threshold(500_000)
# Products of a tensor's rows are small: the threads of BLAS would wait for each other longer than they work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from comparator import cli  # noqa: E402
from comparator.measure.memory import keep_freed_memory  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line in a process of its own; returns the exit code."""
    keep_freed_memory()
    gc.freeze()
    try:
        return cli.main(argv)
    finally:
        gc.freeze()  # the process ends: what has circles is not looked for once more


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


if __name__ == "__main__":
    end(main())

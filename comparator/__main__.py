"""``python -m comparator``."""

import gc
import os
from collections.abc import Sequence

# What a comparison makes has hardly any circles; to look for them every 700 objects takes a tenth of its time.
gc.set_threshold(500_000)
# Products of a tensor's rows are small: the threads of BLAS would wait for each other longer than they work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from comparator import cli  # noqa: E402
from comparator.measure.memory import keep_freed_memory  # noqa: E402
from tensortap.command_line import end  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line in a process of its own; returns the exit code."""
    keep_freed_memory()
    gc.freeze()
    try:
        return cli.main(argv)
    finally:
        gc.freeze()  # the process ends: what has circles is not looked for once more


if __name__ == "__main__":
    end(main())

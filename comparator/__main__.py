"""``python -m comparator``."""

import os
import sys

# Products of a tensor's rows are small: the threads of BLAS would wait for each other longer than they work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from comparator.cli import main

if __name__ == "__main__":
    sys.exit(main())

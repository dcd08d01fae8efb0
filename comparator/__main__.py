"""``python -m comparator``."""

import sys

from comparator.cli import main

if __name__ == "__main__":
    sys.exit(main())

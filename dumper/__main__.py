"""``python -m dumper``."""

import sys

from dumper.cli import main

if __name__ == "__main__":
    sys.exit(main())

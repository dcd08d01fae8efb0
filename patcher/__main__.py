"""``python -m patcher``."""

from __future__ import annotations

from patcher.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

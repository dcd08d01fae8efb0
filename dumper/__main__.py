"""``python -m dumper``."""

from dumper.cli import main
from tensortap.command_line import end

if __name__ == "__main__":
    end(main())

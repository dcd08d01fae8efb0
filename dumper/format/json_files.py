"""Small JSON files through which processes talk.

Every file is written whole under another name and then put in place, so that a reader sees all of it or none;
a file that may exist only once is put in place by a hard link, which fails when somebody was first. Both hold on
NFS too. Readers open files instead of asking for their times: opening is what makes a network file system look.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from dumper.format import regular_files
from dumper.format.regular_files import mode_within, read_bytes

LONGEST = 4 << 20
"""Bytes."""


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file. Raises OSError."""
    temporary = _temporary(path, content)
    os.replace(temporary, path)


def create(path: Path, content: dict[str, Any]) -> bool:
    """Make the file unless it exists; whether this call made it. Raises OSError for anything else."""
    temporary = _temporary(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return True


def read(path: Path) -> dict[str, Any] | None:
    """The content, None when there is no such regular file or it is no JSON object."""
    try:
        content = json.loads(read_bytes(path, LONGEST))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _temporary(path: Path, content: dict[str, Any]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = regular_files.create(temporary, mode_within(path.parent))
    with open(descriptor, "wb") as file:
        file.write(json.dumps(content).encode())
    return temporary

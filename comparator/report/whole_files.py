"""Files that appear under their name when they are complete, and are never written through a link."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def own_folder(path: Path) -> None:
    """Make a folder for this user alone, where somebody else could have made one. Raises OSError when one has."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = path.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid() or there.st_mode & 0o022:
        raise OSError(0, "it is a link, belongs to somebody else, or others may write there")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, with the folders above it. Raises OSError, also where a link or no regular file is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(0, "a link or something else is there")
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(partial, flags, 0o666), "wb") as file:
            file.write(content)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)

"""The bytecode of rewritten modules, kept between processes.

A launched process comes through here before it knows whether anything has to be rewritten, so this module
imports only what Python itself has loaded already.
"""

from __future__ import annotations

import _imp
import marshal
import os
import sys
import time

# importlib.util offers these too, but takes several milliseconds to import.
from _frozen_importlib_external import MAGIC_NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

_KEY = 0x7461_7073
# Not of compile(), whose first call takes a millisecond.
_CodeType = type((lambda: None).__code__)

UNUSED_DAYS = 30.0

_TAG = sys.implementation.cache_tag or "python"


def folder() -> str:
    """``TENSORTAP_CACHE``, or ``tensortap`` in the user's cache folder."""
    given = os.environ.get("TENSORTAP_CACHE")
    if given:
        return given
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "tensortap")


def stamp(file: str, read: Callable[[], bytes]) -> str:
    """Tells the contents that a source file has had apart.

    By its inode and the times of its last changes, which cost less to find out than to read it. Two times, because
    packages may set the time of modification to one and the same day. A file within an archive is read.
    """
    try:
        found = os.stat(file)
    except OSError:
        return source_hash(read()).hex()
    return f"{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}-{found.st_ino:x}"


def key(module: str, digest: str, file: str, stamp: str) -> str:
    """File name of a module's bytecode: source (``stamp``), its place, edits and patcher (the digest), Python."""
    optimize = f".opt{sys.flags.optimize}" if sys.flags.optimize else ""
    place = source_hash(file.encode("utf-8", "surrogateescape")).hex()
    return f"{module}.{digest}.{stamp}.{place}.{_TAG}{optimize}.bin"


def load(name: str) -> CodeType | None:
    """The code object of that name, or None when there is none that is whole and of this Python."""
    try:
        with open(os.path.join(folder(), name), "rb") as file:
            data = file.read()
    except OSError:
        return None
    start = len(MAGIC_NUMBER) + 8
    if data[: len(MAGIC_NUMBER)] != MAGIC_NUMBER or data[len(MAGIC_NUMBER) : start] != _length(len(data) - start):
        return None
    try:
        code = marshal.loads(memoryview(data)[start:])
    except (EOFError, ValueError, TypeError):
        return None
    return code if isinstance(code, _CodeType) else None


def source_hash(data: bytes) -> bytes:
    """Eight bytes that tell contents apart, as Python's own hash-based bytecode files do."""
    return _imp.source_hash(_KEY, data)


def _length(nbytes: int) -> bytes:
    return nbytes.to_bytes(8, "little", signed=True)


def store(name: str, code: CodeType) -> bool:
    """Write a code object so that readers see all of it or nothing; False when the folder cannot be written."""
    body = marshal.dumps(code)
    target = os.path.join(folder(), name)
    temporary = f"{target}.{os.getpid()}.{id(code):x}.tmp"
    try:
        # Of its owner alone: patched sources may be as private as what is recorded with them.
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(MAGIC_NUMBER + _length(len(body)) + body)
        os.replace(temporary, target)
    except OSError:
        _remove(temporary)
        return False
    return True


def prune(days: float = UNUSED_DAYS) -> None:
    """Remove bytecode that nobody has read for so long: every change of a source leaves some behind."""
    oldest = time.time() - days * 86400
    try:
        with os.scandir(folder()) as entries:
            unused = [
                entry.path
                for entry in entries
                if entry.name.endswith(".bin") and max(entry.stat().st_atime, entry.stat().st_mtime) < oldest
            ]
    except OSError:
        return
    for path in unused:
        _remove(path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return

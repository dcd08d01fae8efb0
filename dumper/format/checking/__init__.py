"""Every checksum of the frames of several files, on all cores: compiled, where there is a compiler.

``Checks`` walks from frame to frame of each file, and leaves large payloads to whichever thread has nothing else to do;
``reference`` says what it finds. Little is imported before it begins: files are read while the rest is.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dumper.format.regular_files import mapped
from tensortap.compiled import load
from tensortap.cores import available_cores

if TYPE_CHECKING:
    from dumper.format.checking import _compiled
    from dumper.format.checking._compiled import Checks
else:
    _compiled = load(f"{__name__}._compiled")
    if _compiled is None:
        from dumper.format.checking.reference import Checks
    else:
        Checks = _compiled.Checks

COMPILED = _compiled is not None
Scan: type[_compiled.Scan] | None = None if _compiled is None else _compiled.Scan
"""Rows of the index of a file that has none (``dumper.readers.streams.segments``, which defines them): of records that
begin as others before. None without the compiled module."""
WORTH_A_THREAD = 8 << 20
"""Bytes; of less than this a thread is begun as late as it ends."""
FILE = re.compile(r"rank-.*\.msgpack", re.DOTALL)
"""Names of files that are looked at, be they those of a rank or not."""
_AT_ONCE = 64 << 20
"""Bytes after which the one who waits is told how far it is."""
_WITHOUT_END = 1 << 62
Advance = Callable[[int], None]


class Outcome(NamedTuple):
    """What was found in a file, of the frames that were walked over."""

    records: int
    steps: list[int]
    """Offsets of the frames of steps."""
    damaged: list[int]
    """Offsets of frames of which a payload does not match its checksum, in any order, maybe several times."""
    prefixes: list[tuple[int, bytes]] | None
    """Of a file whose every record is in the index, with its numbers: descriptors by their number, and the metadata of
    their records up to these numbers. None where that is not known."""


class Begun(NamedTuple):
    """The files of a run that are being checked."""

    names: Sequence[str]
    """Of all files."""
    files: Mapping[str, mmap.mmap | bytes]
    """Those that can be read, by their names."""
    checking: Checking
    """Of these files, in their order."""


def begin(folder: Path) -> Begun:
    """Begin to check the files of a run, if it is one."""
    names: Sequence[str] = ()
    files: dict[str, mmap.mmap | bytes] = {}
    with contextlib.suppress(OSError):
        names = sorted(filter(FILE.fullmatch, os.listdir(folder)))
    for name in names:
        with contextlib.suppress(OSError):
            files[name] = mapped(folder / name)
    return Begun(names, files, Checking(list(files.values())))


class Checking:
    """Files that are being checked, by threads that have begun already."""

    def __init__(self, files: Sequence[Any]) -> None:
        """``files``: their bytes, mapped or in memory."""
        self._checks = Checks([(data, isinstance(data, mmap.mmap)) for data in files])
        self._sizes = [len(data) for data in files]
        self._told = 0
        self._helpers: list[threading.Thread] = []
        self._begin(sum(self._sizes))

    def _begin(self, nbytes: int) -> None:
        """Have others help, where there is enough to do."""
        wanted = min(available_cores(), nbytes // WORTH_A_THREAD) if COMPILED else 1
        for _ in range(wanted - 1):
            helper = threading.Thread(target=self._help, name="tensortap-checking", daemon=True)
            try:
                helper.start()
            except RuntimeError:  # there may be no more threads
                break
            self._helpers.append(helper)

    def _help(self) -> None:
        with contextlib.suppress(MemoryError):  # which whoever waits is told
            while self._checks.work(_WITHOUT_END, False):
                pass

    def finish(self, advance: Advance) -> None:
        """Work, and wait, until all files are walked through to where they end, or to what is no frame. ``advance``
        takes the bytes that were checked."""
        while True:
            more = self._checks.work(_AT_ONCE, True)
            done = self._checks.done
            advance(done - self._told)
            self._told = done
            if not more:
                break
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()

    def place(self, number: int) -> tuple[int, int]:
        """Where the walk through a file has come to, and where the frame before that begins."""
        return self._checks.place(number)

    def go_on(self, number: int, at: int, last: int, advance: Advance) -> tuple[int, int]:
        """Walk on through a file from a place behind what was no frame; ``last``: where the frame before it begins.
        Returns the new place."""
        self._checks.go_on(number, at, last)
        self._begin(self._sizes[number] - at)
        self.finish(advance)
        return self.place(number)

    def outcome(self, number: int) -> Outcome:
        """What was found in a file."""
        return Outcome(*self._checks.outcome(number))

    def stop(self) -> None:
        """Nobody needs the rest."""
        self._checks.stop()

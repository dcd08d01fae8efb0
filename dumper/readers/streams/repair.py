"""``repair``: indexes made anew, damaged parts set aside."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dumper.format import frames
from dumper.format.regular_files import create
from dumper.format.walk import Damage, frames_and_damage
from dumper.readers.streams.scan import scan
from dumper.readers.streams.segments import map_file
from dumper.readers.streams.verify import Report, is_complete, named, verify_data
from dumper.reading.open import open_run
from tensortap.progress import Progress, silent

if TYPE_CHECKING:
    from dumper.readers.streams.segments import Data

_SUFFIX = ".damaged"
_MOST_LISTED = 1000
"""Parts that a repaired file says it has left out."""


def repair_run(path: Path, progress: Progress = silent) -> Iterator[str]:
    """Make every file complete: its intact frames in a new file with an index, the old one kept as ``….damaged``.

    Files that are complete and intact are left alone. A file that was made says for good that it was repaired and what
    was left out (frame ``repaired``). Nothing is deleted. Yields what was done, for people. Raises RunError when there
    is no run, and OSError when it cannot be written.
    """
    open_run(path, progress)
    for file in sorted(path.glob("rank-*.msgpack")):
        check = Report()
        try:
            data = map_file(file)
        except OSError as error:
            yield f"{file.name}: left alone, it {error.strerror}"
            continue
        with progress(f"verifying {file.name}", len(data)) as advance:
            verify_data(file.name, data, check, advance)
        if check.intact and is_complete(data):
            yield f"{file.name}: complete and intact"
            continue
        yield _rewrite(file, data)


def _rewrite(path: Path, data: Data) -> str:
    """Copy the intact frames into a complete file that takes the place of this one."""
    fresh = path.with_name(path.name + ".repaired")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()  # of a repair that was interrupted: a copy of what is here
    with open(create(fresh, stat.S_IMODE(path.stat().st_mode)), "wb") as file:
        left_out = _copy_intact(data, file)
        aside = _free_name(path) if left_out else None
        position = file.tell()
        meta = {"left_out": left_out[:_MOST_LISTED], "aside": None if aside is None else aside.name}
        file.write(frames.encode_frame("repaired", meta, position))
        file.flush()
        position = file.tell()
        columns, _ = scan(fresh, map_file(fresh))
        file.write(frames.encode_frame("index", columns.meta(), position, (columns.encode(),)))
        file.write(frames.encode_footer(position))
        file.flush()
        os.fsync(file.fileno())
    if aside is not None:
        path.rename(aside)
    fresh.replace(path)
    lost = "" if aside is None else f"; {len(left_out)} damaged parts left out, the file as it was is {aside.name}"
    return f"{path.name}: {len(columns)} records kept, index written{lost}"


def _free_name(path: Path) -> Path:
    """``….damaged``, with a number where a repair before has left one."""
    names = (path.with_name(path.name + _SUFFIX + (f".{number}" if number else "")) for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def _copy_intact(data: Data, file: BinaryIO) -> list[str]:
    """Copy frames, their payloads aligned anew; returns what was left out, in words."""
    left_out = []
    for found in frames_and_damage(data):
        if isinstance(found, Damage):
            what = "the unfinished end" if found.truncated else "bytes that are no frame"
            left_out.append(f"{what}: {found.end - found.offset} bytes from offset {found.offset}")
        elif not all(frames.payload_is_intact(data, payload) for payload in found.payloads):
            left_out.append(f"a damaged {found.kind}{named(found)}")
        elif found.kind != "index":
            file.write(frames.encode_head(found.kind.encode("ascii"), found.meta, len(found.payloads)))
            for payload in found.payloads:
                file.write(frames.encode_padding(file.tell(), payload.length))
                file.write(frames.payload_view(data, payload))
                file.write(frames.encode_checksum(payload.checksum))
    return left_out

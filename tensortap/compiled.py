"""The compiled modules, where they can be used. Without them the packages do the same in Python and numpy."""

from __future__ import annotations

import importlib
import importlib.util
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODULES = (
    "comparator.align.adding._compiled",
    "comparator.diagnosis.kernel._compiled",
    "comparator.measure.kernel._compiled",
    "comparator.measure.quoting._compiled",
    "comparator.measure.torch_sums._compiled",
    "dumper.format.checking._compiled",
    "dumper.memory.sending._compiled",
    "dumper.readers.sglang.pt_format._compiled",
    "dumper.recording.shortcut._compiled",
    "dumper.values.crc32._compiled",
    "dumper.values.fingerprint._compiled",
    "dumper.values.statistics._compiled",
    "dumper.writing.framing._compiled",
    "dumper.writing.whole_write._compiled",
    "tensortap.lost_pages._compiled",
)
"""Those of all packages."""
_HALF = "../../../dumper/values/statistics/_half.h"
HEADERS_ELSEWHERE = {
    "comparator.align.adding._compiled": (_HALF,),
    "comparator.diagnosis.kernel._compiled": (_HALF,),
    "comparator.measure.kernel._compiled": (
        _HALF,
        "../../diagnosis/kernel/_widen.h",
        "../../../dumper/writing/framing/_xxh3_parts.h",
    ),
    "comparator.measure.torch_sums._compiled": (_HALF,),
    "dumper.format.checking._compiled": (
        "../../writing/framing/_xxh3.h",
        "../../writing/framing/_xxh3_parts.h",
    ),
    "dumper.recording.shortcut._compiled": ("../../writing/framing/_slots.h",),
}
"""What modules are built from beside the C sources in their folder, from which the paths begin."""
_ELF = struct.Struct("<32xQ14xHH4x")
"""Of the header: offset of the table of segments, size of an entry, number of entries."""
_SEGMENT = struct.Struct("<8xQ16xQ")
"""Of an entry: offset in the file, bytes in the file."""


def load(name: str) -> Any:
    """The compiled module of this name; None where the packages were installed without a C compiler.

    None as well for one that is there and cannot be used: it is damaged, was built for another Python, or from other
    sources than those beside it. The log then says so once, as ``kernel-not-loaded`` (docs/messages.md).
    """
    try:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None and _is_cut_off(found.origin):
            raise ImportError(f"{found.origin}: the file is shorter than it says")
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        others = _built_for_others(name)
        if others:
            _say(others[0], "it was built for another Python")
        elif error.name != name:
            _say(name, str(error))
    except Exception as error:  # whatever the loader, or the module's own code, makes of a damaged file
        _say(name, str(error))
    else:
        file = module.__file__ or ""
        digest = _digest_beside(file, name)
        if digest is None or module.__doc__ == digest:
            return module
        _say(file, "it was built from other sources than those beside it")
    return None


def missing() -> Sequence[str]:
    """The compiled modules that are not used here."""
    return [name for name in MODULES if load(name) is None]


def sources_digest(folder: str, name: str = "") -> str | None:
    """What tells the C sources of the module ``name``, in its folder, from others; None where there are none.
    ``setup.py`` computes the same."""
    digest = 0
    # A tenth of the time that pathlib takes, at each start.
    sources = sorted(source for source in os.listdir(folder) if source.endswith((".c", ".h")))
    for path in (*sources, *(HEADERS_ELSEWHERE.get(name, ()) if sources else ())):
        with open(os.path.join(folder, path), "rb") as source:
            digest = zlib.crc32(source.read(), digest)
    return f"{digest:08x}" if digest else None


def _digest_beside(file: str, name: str) -> str | None:
    try:
        return sources_digest(os.path.dirname(file), name)
    except OSError:
        return None


def _is_cut_off(path: str) -> bool:
    """Whether a library of 64 bits ends before its segments do, as its ELF header places them (elf(5)): to load it
    would end the process (SIGBUS)."""
    with open(path, "rb") as file:
        header = file.read(_ELF.size)
        if len(header) < _ELF.size or not header.startswith(b"\x7fELF\x02\x01"):
            return False
        first, size, count = _ELF.unpack(header)
        file.seek(first)
        table = file.read(size * count)
        end = os.fstat(file.fileno()).st_size
    if size < _SEGMENT.size or len(table) < size * count:
        return True
    places = (_SEGMENT.unpack_from(table, at) for at in range(0, len(table), size))
    return any(offset + length > end for offset, length in places)


def _built_for_others(name: str) -> Sequence[str]:
    package, _, stem = name.rpartition(".")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations or () if spec is not None else ()
    return sorted(str(found) for folder in folders for found in Path(folder).glob(f"{stem}.*.so"))


def _say(what: str, why: str) -> None:
    # Imported late: logging would double what ``import dumper`` costs every patched process.
    import logging

    logger = logging.getLogger("tensortap")
    logger.disabled = False  # a framework's dictConfig switches off all loggers that it does not name
    logger.warning(
        "tensortap: kernel-not-loaded: %s cannot be used: %s; results are the same without it, and come more slowly. "
        "Install tensortap again with this Python ('pip install .'; in a checkout 'python setup.py build_ext -i')",
        what,
        why,
    )

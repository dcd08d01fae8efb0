"""The compiled modules, where they can be used. Without them the packages do the same in Python and numpy."""

from __future__ import annotations

import importlib
import importlib.util
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODULES = (
    "comparator.diagnosis.kernel._compiled",
    "comparator.measure.kernel._compiled",
    "comparator.measure.torch_sums._compiled",
    "dumper.readers.sglang.pt_format._compiled",
    "dumper.recording.shortcut._compiled",
    "dumper.values.fingerprint._compiled",
    "tensortap.lost_pages._compiled",
)
"""Those of all packages."""


def load(name: str) -> Any:
    """The compiled module of this name; None where the packages were installed without a C compiler.

    None as well for one that is there and cannot be used: it is damaged, was built for another Python, or from other
    sources than those beside it. The log then says so once, as ``kernel-not-loaded`` (docs/messages.md).
    """
    try:
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
        digest = sources_digest(os.path.dirname(file))
        if digest is None or module.__doc__ == digest:
            return module
        _say(file, "it was built from other sources than those beside it")
    return None


def missing() -> Sequence[str]:
    """The compiled modules that are not used here."""
    return [name for name in MODULES if load(name) is None]


def sources_digest(folder: str) -> str | None:
    """What tells the C sources in a folder from others; None where there are none. ``setup.py`` computes the same."""
    digest = 0
    for name in sorted(os.listdir(folder)):  # a tenth of the time that pathlib takes, at each start
        if name.endswith((".c", ".h")):
            with open(os.path.join(folder, name), "rb") as source:
                digest = zlib.crc32(source.read(), digest)
    return f"{digest:08x}" if digest else None


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

"""``open_run``: find out what kind of recording a directory is, and open it."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path

from dumper.reading.protocol import Reader, Run, RunError
from tensortap.progress import Progress, silent


@functools.cache
def known_readers() -> tuple[Reader, ...]:
    """The reader of every folder in ``dumper/readers``, in the order in which they are asked."""
    # Found by name and not imported by it: a new kind of recording is a new folder, and nothing here changes.
    folder = importlib.import_module("dumper.readers")
    modules = [
        importlib.import_module(f"{folder.__name__}.{found.name}") for found in pkgutil.iter_modules(folder.__path__)
    ]
    readers: list[Reader] = [module.READER for module in modules]
    return tuple(sorted(readers, key=lambda reader: reader.order))


def open_run(path: str | Path, progress: Progress = silent) -> Run:
    """Open a recording: a run directory, or a directory of SGLang ``.pt`` files. No payload is read.

    ``progress`` shows how far it is (``tensortap.progress.in_terminal()``). Raises RunError when the path is no
    directory or holds no recording. Damage to files is no error: see ``Run.problems``.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(
            f"{path}: {'not a directory' if path.exists() else 'no such directory'}; give the directory of a run"
        )
    for reader in known_readers():
        if reader.holds(path):
            return reader.open(path, progress)
    for reader in known_readers():
        if (hint := reader.hint(path)) is not None:
            raise RunError(hint)
    files = [reader.files for reader in known_readers()]
    content = "is empty" if next(path.iterdir(), None) is None else f"holds neither {' nor '.join(files)} files"
    raise RunError(f"{path} {content}; give the directory of a run (TENSORTAP_DIR/TENSORTAP_RUN)")

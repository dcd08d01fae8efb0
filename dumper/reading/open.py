"""``open_run``: find out what kind of recording a directory is, and open it."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil

from dumper.reading.protocol import Reader, Run, RunError
from dumper.storage.addresses import AddressError, place_of
from dumper.storage.places import Place, StorageError, StoredPath, Workers, listed_once
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


def open_run(
    path: str | os.PathLike[str] | StoredPath, progress: Progress = silent, workers: Workers | None = None
) -> Run:
    """Open a recording: a run directory, or a directory of SGLang ``.pt`` files. No payload is read.

    ``path`` may be an address on object storage, ``s3://bucket/runs/tp2`` (docs/scale.md).
    ``progress`` shows how far it is (``tensortap.progress.in_terminal()``). ``workers`` look at the files in the place
    of this process (``dumper.storage.places.Workers``). Raises RunError when the path is no
    directory or holds no recording. Damage to files is no error: see ``Run.problems``.
    """
    try:
        place = place_of(path)
        return _opened(place, progress, workers)
    except (AddressError, StorageError) as error:
        raise RunError(str(error)) from None


def _opened(path: Place, progress: Progress, workers: Workers | None) -> Run:
    if not path.is_dir():
        raise RunError(
            f"{path}: {'not a directory' if path.exists() else 'no such directory'}; give the directory of a run"
        )
    readers = [reader for reader in known_readers() if reader.from_storage or not isinstance(path, StoredPath)]
    with listed_once(path):
        for reader in readers:
            if reader.holds(path):
                if workers is not None and reader.open_with is not None:
                    return reader.open_with(path, progress, workers)
                return reader.open(path, progress)
    for reader in readers:
        if (hint := reader.hint(path)) is not None:
            raise RunError(hint)
    missing = ", ".join(f"no {reader.files} files found" for reader in readers)
    content = "is empty" if next(path.iterdir(), None) is None else f"is no run: {missing}"
    if len(readers) < len(known_readers()):
        kept = ", ".join(reader.files for reader in known_readers() if not reader.from_storage)
        content += f" (recordings of {kept} are read from a disk: copy them there)"
    raise RunError(f"{path} {content}; give the directory of a run (TENSORTAP_DIR/TENSORTAP_RUN)")

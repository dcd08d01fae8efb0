"""Modules in wheels and zip files, packages without ``__init__`` included.

Python's own ``zipimport`` sees a folder in an archive only if the archive lists it, which wheels do not, before
Python 3.13.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

_SUFFIXES = (".whl", ".zip", ".egg")


class Archive:
    """The files of one archive, and a loader for their bytes."""

    def __init__(self, path: str) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.names = frozenset(name for name in archive.namelist() if not name.endswith("/"))
        self.folders = frozenset(str(parent).replace("\\", "/") for name in self.names for parent in Path(name).parents)

    def get_data(self, file: str) -> bytes:
        """Bytes of ``<archive>/<name>``; raises OSError when it is not there."""
        name = file[len(self.path) + 1 :].replace("\\", "/")
        with zipfile.ZipFile(self.path) as archive:
            try:
                return archive.read(name)
            except KeyError:
                raise OSError(f"{name} is not in the archive") from None

    def find(self, folder: str, name: str) -> tuple[str | None, bool] | None:
        """A module in a folder of the archive: its file, if it has one, and whether it is a package."""
        base = f"{folder}/{name}" if folder else name
        for candidate, package in ((f"{base}/__init__.py", True), (f"{base}.py", False), (f"{base}.pyc", False)):
            if candidate in self.names:
                return f"{self.path}/{candidate}", package
        extension = next((n for n in self.names if n.startswith(base + ".") and n.endswith((".so", ".pyd"))), None)
        if extension is not None:
            return f"{self.path}/{extension}", False
        return (None, True) if base in self.folders else None

    def modules(self, folder: str) -> Iterator[str]:
        """Names of the modules and packages directly in a folder."""
        prefix = f"{folder}/" if folder else ""
        for name in self.names:
            if name.startswith(prefix) and name.endswith(".py"):
                first, _, rest = name[len(prefix) :].partition("/")
                if rest or first != "__init__.py":
                    yield first.removesuffix(".py")


@lru_cache(maxsize=8)
def open_archive(path: str) -> Archive:
    """The archive at a path; raises OSError or ``zipfile.BadZipFile`` when it is none."""
    return Archive(path)


def split_archive_path(entry: str) -> tuple[Archive, str] | None:
    """Archive and folder in it of a path such as ``x.whl/package``; None when there is no archive in it."""
    for part in (entry, *map(str, Path(entry).parents)):
        if part.endswith(_SUFFIXES) and zipfile.is_zipfile(part):
            return open_archive(part), entry[len(part) :].strip("/\\").replace("\\", "/")
    return None

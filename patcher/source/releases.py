"""Whether the packages that a config asks for are there in the releases that it asks for."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from patcher.errors import ConfigError
from patcher.source.modules import ModuleFinder


class Releases:
    """Looks up releases of packages, in source roots first and then among what is installed."""

    def __init__(self, finder: ModuleFinder) -> None:
        self._finder = finder
        self._known: dict[str, str | None] = {}

    def unmet(self, requires: Sequence[Mapping[str, str]] | None, needs: str = "it needs") -> str:
        """What is not met, in words; empty when any one of the alternatives is met, or there are none.

        A package whose release cannot be found out counts as met: a source tree need not say it.
        """
        if not requires:
            return ""
        reasons = [self._unmet_one(alternative, needs) for alternative in requires]
        return "" if "" in reasons else ", nor ".join(reasons)

    def version(self, package: str) -> str | None:
        """Release of a package: ``""`` when it is there but does not say, None when it is not there."""
        if package not in self._known:
            self._known[package] = self._look_up(package)
        return self._known[package]

    def _unmet_one(self, requires: Mapping[str, str], needs: str) -> str:
        for package, specifier in requires.items():
            try:
                wanted = SpecifierSet(specifier)
            except InvalidSpecifier:
                raise ConfigError(
                    f"requires: {package}: {specifier!r} is not a version specifier such as '>=0.5.9'"
                ) from None
            version = self.version(package)
            if version is None:
                return f"{needs} {package} {specifier}, which is not installed"
            if version and not wanted.contains(Version(version), prereleases=True):
                return f"{needs} {package} {specifier}, this is {package} {version}"
        return ""

    def _look_up(self, package: str) -> str | None:
        if package == "python":
            return platform.python_version()
        module = self._finder.find(package.replace("-", "_"))
        if module is not None and module.file is not None:
            for root in self._finder.roots:
                if module.file.startswith(root):
                    return (
                        _valid(_from_metadata(Path(root), package)) or _valid(_from_source(self._finder, package)) or ""
                    )
        try:
            return _valid(importlib.metadata.version(package)) or ""
        except importlib.metadata.PackageNotFoundError:
            if module is None:
                return None
            return _valid(_from_source(self._finder, package)) or ""


def _valid(version: str) -> str:
    try:
        return str(Version(version)) if version else ""
    except InvalidVersion:
        return ""


def _from_metadata(root: Path, package: str) -> str:
    wanted = re.sub(r"[-_.]+", "_", package).lower()
    if root.is_file():
        with zipfile.ZipFile(root) as archive:
            folders = {name.split("/")[0] for name in archive.namelist()}
    else:
        folders = {path.name for path in root.glob("*.dist-info")}
    for folder in folders:
        name, _, version = folder.removesuffix(".dist-info").partition("-")
        if folder.endswith(".dist-info") and re.sub(r"[-_.]+", "_", name).lower() == wanted:
            return version
    return ""


def _from_source(finder: ModuleFinder, package: str) -> str:
    name = package.replace("-", "_")
    for candidate in (f"{name}._version", f"{name}.version", name):
        module = finder.find(candidate)
        if module is None or module.file is None or not module.file.endswith(".py"):
            continue
        found = re.search(
            r"""^(?:__version__|version)\s*(?::[^=]*)?=\s*(?:version\s*=\s*)?["']([^"']+)["']""",
            module.source,
            re.MULTILINE,
        )
        if found:
            return found.group(1)
    return ""

"""Standing in for loaders that are none of Python's own for source files.

Imported at the start of every launched process, so it imports next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any

    from patcher.load.process_plan import Activation


class StandInLoader:
    """A loader that does what another one does, but for what its subclasses change."""

    def __init__(self, spec: ModuleSpec, activation: Activation) -> None:
        self._original: Any = spec.loader
        self._module = spec.name
        self._file = spec.origin or ""
        self._activation = activation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See ``importlib.abc.Loader``."""
        create = getattr(self._original, "create_module", None)
        module: ModuleType | None = create(spec) if create is not None else None
        return module


class ArchiveLoader(StandInLoader):
    """For loaders whose code is that of their source (zip archives)."""

    def get_code(self, fullname: str) -> CodeType:
        """Code of the rewritten module. Raises PatchImportError when there is no source."""
        if not self._file.endswith(".py") or not hasattr(self._original, "get_data"):
            message = f"{fullname} has no Python source ({self._file or 'built in'}) and cannot be patched"
            self._activation.report(message)
            from patcher.errors import PatchImportError

            raise PatchImportError(message, name=fullname)
        return self._activation.code(fullname, self._file, lambda: self._original.get_data(self._file))

    def exec_module(self, module: ModuleType) -> None:
        """See ``importlib.abc.Loader``."""
        exec(self.get_code(module.__name__), module.__dict__)

"""What goes wrong in the patcher, as exceptions whose text is the whole message for the user."""

from __future__ import annotations


class PatchError(Exception):
    """A config, a target or an edit is wrong; the text names it and says what to do."""


class ConfigError(PatchError):
    """A patch config cannot be read: bad YAML, an unknown key, two modes in one edit."""


class TargetError(PatchError):
    """A target module or function does not exist or cannot be patched."""


class EditError(PatchError):
    """One edit does not land, or its code does not compile."""


class RequirementError(PatchError):
    """A config says that it is for another release than the one that is installed."""


class PatchImportError(ImportError):
    """A target module could not be patched at import; the module is not imported unpatched instead."""

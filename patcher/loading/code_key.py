"""What identifies a function's code across a rewrite."""

from __future__ import annotations

import types
from dataclasses import dataclass


@dataclass(frozen=True)
class CodeKey:
    """What a function's code and its rewritten code have in common: name and first line."""

    name: str
    line: int

    @classmethod
    def of(cls, code: types.CodeType) -> CodeKey:
        """Key of a code object."""
        return cls(code.co_name, code.co_firstlineno)

"""What is to be done to one module, as plain immutable values: the plan, apart from its execution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from patcher.config.yaml_source import Origin

Action = Literal["before", "after", "replace", "wrap"]


@dataclass(frozen=True)
class Code:
    """Python code from a config and where its first line stands there."""

    text: str
    origin: Origin


@dataclass(frozen=True)
class ConditionalDims:
    """Dims that depend on a condition."""

    condition: Code
    then: str
    otherwise: str


@dataclass(frozen=True)
class Dump:
    """The short form of a tap."""

    name: str
    value: Code | None = None
    condition: Code | None = None
    """The value is recorded only where this expression is true."""
    dims: str | ConditionalDims | None = None
    level: str | None = None
    grad: bool = False
    tags: tuple[tuple[str, Code], ...] = ()
    inputs: tuple[str, ...] = ()
    """Taps that the value is computed from: ``NAME``, ``NAME@-1``, ``NAME@last``."""
    operation: str | None = None

    def expressions(self) -> tuple[Code, ...]:
        """All Python expressions that are evaluated at the tap."""
        dims = self.dims.condition if isinstance(self.dims, ConditionalDims) else None
        optional = (self.condition, self.value, dims)
        return (*(code for code in optional if code is not None), *(code for _, code in self.tags))


@dataclass(frozen=True)
class Step:
    """The short form of the beginning of a step, or of its end."""

    ends: bool
    batch: Code | None = None
    condition: Code | None = None
    tags: tuple[tuple[str, Code], ...] = ()

    def expressions(self) -> tuple[Code, ...]:
        """All Python expressions that are evaluated there."""
        optional = (self.condition, self.batch)
        return (*(code for code in optional if code is not None), *(code for _, code in self.tags))


@dataclass(frozen=True)
class Tags:
    """Tags of everything that is recorded while the matched code runs."""

    tags: tuple[tuple[str, Code], ...]

    def expressions(self) -> tuple[Code, ...]:
        """All Python expressions that are evaluated there."""
        return tuple(code for _, code in self.tags)


ShortForm = Dump | Step | Tags
"""What may fail without breaking the model."""


@dataclass(frozen=True)
class Edit:
    """One edit of one function."""

    number: int
    """Counted from 1 over all edits of the function, over all configs, those for other releases included."""
    origin: Origin
    place: Literal["match", "entry", "return", "assign"]
    patterns: tuple[str, ...]
    action: Action
    content: Code | ShortForm
    nth: int | Literal["all"] | None = None
    inside: tuple[str, ...] = ()
    optional: bool = False
    undefined: tuple[str, ...] = ()
    """Names that its code may use although nothing in reach defines them; ``*`` for any."""
    by_lines: bool = False
    """It has SGLang's form: lines of text are meant, if exactly one place has them, and a pattern otherwise."""
    preamble: str = ""
    """The preamble of the edit's patch: a name ``dumper`` bound there is not ours."""

    @property
    def summary(self) -> str:
        """The place in a few words: ``match 'x = f(...)'``, ``at: return``."""
        if self.place in ("entry", "return"):
            return f"at: {self.place}"
        word = "wrap" if self.action == "wrap" else self.place
        first = " ".join(self.patterns[0].split())
        more = f" (or {len(self.patterns) - 1} more)" if len(self.patterns) > 1 else ""
        return f"{word}: {first if len(first) <= 70 else first[:67] + '...'}{more}"


@dataclass(frozen=True)
class FunctionPatch:
    """All edits of one function, in the order of the configs."""

    target: str
    """Dotted name of the definition: module and qualified name."""
    module: str
    path: tuple[str, ...]
    """Names from the module's top level to the function."""
    preambles: tuple[Code, ...]
    edits: tuple[Edit, ...]
    undefined: tuple[str, ...] = ()
    """Names that its preambles may use although nothing in reach defines them; ``*`` for any."""


@dataclass(frozen=True)
class ConfigTexts:
    """The configs that are active, as they go into the header of a run."""

    paths: tuple[str, ...]
    texts: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class ModulePatch:
    """All edits of one module."""

    module: str
    functions: tuple[FunctionPatch, ...]
    configs: ConfigTexts

"""The short forms of a patch config as pydantic models: taps, steps, tags (reference: ``docs/patch-config.md``)."""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from patcher.config.tap_inputs import OPERATIONS, check_operation, parse_input
from tensortap.dims import parse_dims

if TYPE_CHECKING:
    from typing_extensions import Self


def _scalar_as_code(value: Any) -> Any:
    return repr(value) if value is None or isinstance(value, (bool, int, float)) else value


Expression = Annotated[str, BeforeValidator(_scalar_as_code)]


def kind_of(value: Any) -> str:
    """Which alternative a value is meant as, so that messages are about that one alone."""
    if isinstance(value, (dict, BaseModel)):
        return "a mapping"
    if isinstance(value, bool):
        return "a flag"
    return "text"


def quoted(names: Any) -> str:
    """Names for a message."""
    return ", ".join(f"'{name}'" for name in names)


class Strict(BaseModel):
    """A mapping whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


LEVEL = r"^(full|stats|hash|sample(\((rows|stride)=[1-9][0-9]*\))?)$"
"""As ``dumper/rules/levels.py`` reads it."""
LEVELS = "full, sample, sample(rows=N), sample(stride=N), stats or hash"


def _readable_dims(text: str) -> str:
    parse_dims(text)
    return text


DimsText = Annotated[str, AfterValidator(_readable_dims)]
"""What ``tensortap.dims`` can read."""


class ConditionalDims(Strict):
    """Dims that depend on a condition, which is evaluated at the tap."""

    condition: Expression = Field(alias="if", description="Python expression, evaluated at the tap.")
    then: DimsText = Field(description="Dims where the condition is true.")
    otherwise: DimsText = Field(alias="else", description="Dims where it is not.")


Dims = Annotated[
    Annotated[DimsText, Tag("text")] | Annotated[ConditionalDims, Tag("a mapping")],
    Discriminator(lambda value: kind_of(value).replace("a flag", "text")),
]


def _texts_of_inputs(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list):
        raise ValueError(f"a list of names of taps is expected, not {names!r}")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"the name of a tap is text, not {name!r}; put it in quotes if it is meant as a name")
        parse_input(name)
    return names


OF_A_RECORD = ("name", "rank", "step")
"""What every record has: filters and ``Run.select`` mean that by these names."""


class _Tagged(BaseModel):
    """Keys that are known, and further ones that are tags: names and Python expressions."""

    RESERVED: ClassVar[tuple[str, ...]] = OF_A_RECORD

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Expression] = Field(init=False)

    @model_validator(mode="after")
    def _tags_are_names(self) -> Self:
        for tag in self.tags:
            if not tag.isidentifier():
                raise ValueError(f"the tag {tag!r} is not a Python name")
            if keyword.iskeyword(tag):
                raise ValueError(f"{tag!r} is a word of Python, which cannot name a tag")
            if tag in OF_A_RECORD:
                raise ValueError(f"every record has a {tag!r} of its own, so no tag can be called that")
            if tag in self.RESERVED:
                raise ValueError(f"{tag!r} means something else to the dumper, so no tag can be called that here")
        return self

    @property
    def tags(self) -> dict[str, str]:
        """Tag name to Python expression."""
        return dict(self.__pydantic_extra__ or {})


class TapSettings(_Tagged):
    """How taps record. Every further key is a tag: a name and a Python expression evaluated at the tap."""

    condition: Expression | None = Field(
        None, alias="if", description="Python expression; the value is recorded only where it is true."
    )
    dims: Dims | None = Field(
        None, description="How the dimensions are named and split, see docs/dims.md; or two such texts and a condition."
    )
    level: str | None = Field(
        None,
        description=f"How much of the value is recorded: {LEVELS}. Default is the run's own setting.",
        json_schema_extra={"pattern": LEVEL},
    )
    grad: bool = Field(False, description="Record the gradient of the value too.")

    @field_validator("level")
    @classmethod
    def _level_is_known(cls, level: str | None) -> str | None:
        if level is not None and not re.match(LEVEL, level):
            raise ValueError(f"{level!r} is not a level: use {LEVELS}")
        return level


class TapDefaults(TapSettings):
    """What the taps of a patch or of a file record alike, where they do not say otherwise."""

    @model_validator(mode="after")
    def _nothing_of_one_tap(self) -> Self:
        own = sorted({"name", "value", "inputs", "operation"} & self.tags.keys())
        if own:
            raise ValueError(f"{quoted(own)} cannot be a default, because it belongs to one tap")
        return self


class DumpSpec(TapSettings):
    """What a tap records. Every further key is a tag: a name and a Python expression evaluated at the tap."""

    name: str = Field(min_length=1, description="Name of the record.")
    value: Expression | None = Field(
        None,
        description="Python expression to record. Default: the matched expression (wrap), the assigned target "
        "(assign), the returned value (at: return).",
    )
    inputs: Annotated[list[str], BeforeValidator(_texts_of_inputs)] = Field(
        default_factory=list,
        description="Taps whose values this value is computed from: NAME (of the same tags), NAME@-1 (of the layer "
        "before), NAME@last (of the last layer).",
    )
    operation: str | None = Field(
        None,
        description="What computes the value from its inputs.",
        json_schema_extra={"enum": [*OPERATIONS, None]},
    )

    @field_validator("operation")
    @classmethod
    def _operation_is_known(cls, operation: str | None) -> str | None:
        if operation is not None:
            check_operation(operation)
        return operation


class StepSpec(_Tagged):
    """Begins a step. Every further key is a tag of the step."""

    RESERVED: ClassVar[tuple[str, ...]] = (*OF_A_RECORD, "self", "layout")

    batch: Expression | None = Field(
        None, description="Python expression of the engine's batch, which tells the token layout."
    )
    condition: Expression | None = Field(
        None, alias="if", description="Python expression; a step begins only where it is true."
    )


class EndStepSpec(Strict):
    """Ends the step under way."""

    condition: Expression | None = Field(
        None, alias="if", description="Python expression; the step ends only where it is true."
    )


class TagsSpec(_Tagged):
    """Tags of everything that is recorded while the matched statement runs."""

    RESERVED: ClassVar[tuple[str, ...]] = (*OF_A_RECORD, "self")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.tags:
            raise ValueError("'tags' names no tag")
        return self

"""The patch config: its YAML format as pydantic models. ``docs/patch-config.md`` is the reference."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

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


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


def _scalar_as_code(value: Any) -> Any:
    return repr(value) if value is None or isinstance(value, (bool, int, float)) else value


Patterns = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
"""One pattern, or a list of alternatives: the first that matches anywhere is used."""
Expression = Annotated[str, BeforeValidator(_scalar_as_code)]
Requirement = Annotated[list[dict[str, str]], BeforeValidator(_as_list)]
"""Package to version specifier, such as ``{sglang: ">=0.5.9"}``; in a list, any one of them is enough."""


def _kind(value: Any) -> str:
    """Which alternative a value is meant as, so that messages are about that one alone."""
    if isinstance(value, (dict, BaseModel)):
        return "a mapping"
    if isinstance(value, bool):
        return "a flag"
    return "text"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


LEVEL = r"^(full|stats|hash|sample(\((rows|stride)=[1-9][0-9]*\))?)$"
"""As ``dumper/rules/levels.py`` reads it."""
LEVELS = "full, sample, sample(rows=N), sample(stride=N), stats or hash"


def _readable_dims(text: str) -> str:
    parse_dims(text)
    return text


DimsText = Annotated[str, AfterValidator(_readable_dims)]
"""What ``tensortap.dims`` can read."""


class ConditionalDims(_Strict):
    """Dims that depend on a condition, which is evaluated at the tap."""

    condition: Expression = Field(alias="if", description="Python expression, evaluated at the tap.")
    then: DimsText = Field(description="Dims where the condition is true.")
    otherwise: DimsText = Field(alias="else", description="Dims where it is not.")


Dims = Annotated[
    Annotated[DimsText, Tag("text")] | Annotated[ConditionalDims, Tag("a mapping")],
    Discriminator(lambda value: _kind(value).replace("a flag", "text")),
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
            raise ValueError(f"{_quoted(own)} cannot be a default, because it belongs to one tap")
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


class EndStepSpec(_Strict):
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


SHORT_FORMS = ("dump", "step", "end_step", "tags")
Undefined = Literal[True] | tuple[str, ...]
_UNDEFINED = "Names that code may use although nothing in reach defines them (true: any)"

Insertion = Annotated[
    Annotated[str, Tag("text")] | Annotated[bool, Tag("a flag")] | Annotated[DumpSpec, Tag("a mapping")],
    Discriminator(_kind),
]
Wrap = Annotated[
    Annotated[Patterns, Tag("text")] | Annotated[bool, Tag("a flag")] | Annotated[DumpSpec, Tag("a mapping")],
    Discriminator(_kind),
]


class EditSpec(_Strict):
    """One edit: one place (match, at, assign, wrap) and one action (before, after, replace, dump)."""

    match: Patterns | None = Field(None, description="Pattern, or alternatives of which the first found is used.")
    at: Literal["entry", "return"] | None = Field(None, description="Start of the function, or all its returns.")
    assign: Patterns | None = Field(None, description="A name or target: after each assignment to it.")
    wrap: Wrap | None = Field(
        None, description="A pattern (or true beside `match`): record the matched expression in place."
    )
    before: Insertion | None = Field(None, description="Code put before the matched statement.")
    after: Insertion | None = Field(None, description="Code put after the matched statement.")
    replace: str | None = Field(None, description="Code that takes the place of what matched; empty deletes it.")
    prepend: str | None = Field(None, description="Synonym of `before`.")
    append: str | None = Field(None, description="Synonym of `after`.")
    replacement: str | None = Field(None, description="Synonym of `replace`.")
    dump: DumpSpec | None = Field(None, description="Short form of a dump call, after what matched.")
    step: StepSpec | Literal[True] | None = Field(None, description="A step begins here.")
    end_step: EndStepSpec | Literal[True] | None = Field(None, description="The step under way ends here.")
    tags: TagsSpec | None = Field(None, description="Tags of what is recorded while the matched statement runs.")
    undefined: Undefined = Field((), description=f"{_UNDEFINED}, in this edit.")
    nth: int | Literal["all"] | None = Field(
        None, description="Which of several matches, counted from 1, or from the end as -1, or `all`."
    )
    inside: Patterns | None = Field(None, description="Only matches within code that matches this pattern.")
    optional: bool = Field(False, description="Need not land; `check` says whether it did.")
    requires: Requirement | None = Field(None, description="The edit is left out for other releases.")

    @model_validator(mode="after")
    def _one_place_and_one_action(self) -> EditSpec:
        _exactly_one(
            {
                "match": self.match,
                "at": self.at,
                "assign": self.assign,
                "wrap": self.wrap if isinstance(self.wrap, list) else None,
            },
            "place",
        )
        if self.nth == 0:
            raise ValueError("nth counts from 1 (or from the end: -1), so 0 is none")
        actions = self.actions()
        if len(actions) > 1:
            raise ValueError(f"only one of {_quoted(actions)} is allowed in one edit; make it two edits")
        short = [name for name in SHORT_FORMS if getattr(self, name) is not None]
        if len(short) > 1:
            raise ValueError(f"only one of {_quoted(short)} is allowed in one edit; make it two edits")
        if not actions and not short:
            raise ValueError(
                f"the edit does nothing: it needs one of 'before', 'after', 'replace', 'wrap', {_quoted(SHORT_FORMS)}"
            )
        if self.tags is not None and (actions or self.match is None):
            raise ValueError("'tags' stands beside 'match' alone: it is about what runs there")
        return self._checked_short_form(actions)

    def _checked_short_form(self, actions: dict[str, Any]) -> EditSpec:
        beside = next((form for form in SHORT_FORMS if getattr(self, form) is not None), None)
        for name, value in actions.items():
            needed = value is True or (name == "wrap" and isinstance(value, list))
            if needed and (beside is None or (name == "wrap" and beside != "dump")):
                raise ValueError(f"'{name}' needs 'dump' beside it, which says what to record")
            if not needed and beside is not None:
                raise ValueError(f"only one of '{name}' and '{beside}' is allowed in one edit; make it two edits")
            if name == "wrap" and self.match is None and not isinstance(value, list):
                raise ValueError("'wrap' needs a pattern: as its value, or as 'match' beside it")
        return self

    def actions(self) -> dict[str, Any]:
        """The action keys that have a value. Blank ones beside another count as left out, as in SGLang."""
        given = {
            name: getattr(self, name)
            for name in ("before", "after", "replace", "prepend", "append", "replacement", "wrap")
            if getattr(self, name) is not None and getattr(self, name) is not False
        }
        given_values = {name: value for name, value in given.items() if not _blank(value)}
        if given_values:
            return given_values
        return {name: value for name, value in given.items() if name in ("replace", "replacement")}


class PatchSpec(_Strict):
    """Edits of one function, or of every function that a glob finds."""

    target: Patterns = Field(
        description="Dotted name of a function or method, globs allowed; in a list, the first that exists."
    )
    edits: list[EditSpec] = Field(default_factory=list)
    preamble: str = Field("", description="Code put at the start of the function, after its docstring.")
    defaults: TapDefaults | None = Field(None, description="What all taps of the patch record alike.")
    undefined: Undefined = Field((), description=f"{_UNDEFINED}, in the preamble and all edits.")
    optional: bool = Field(False, description="The target need not exist.")
    requires: Requirement | None = Field(None, description="The patch is left out for other releases.")

    def dumps(self) -> Iterator[tuple[tuple[str | int, ...], DumpSpec]]:
        """Every short form of the patch, and where it stands in it."""
        for number, edit in enumerate(self.edits):
            for key in ("dump", "before", "after", "wrap"):
                value = getattr(edit, key)
                if isinstance(value, DumpSpec):
                    yield ("edits", number, key), value


class BaseConfig(_Strict):
    """A config that another one builds on."""

    config: str = Field(description="A file, relative to this file, or the name of a config that ships.")
    arguments: dict[str, Any] = Field(default_factory=dict, alias="with", description="Values of its parameters.")


def _as_bases(value: Any) -> Any:
    entries = value if isinstance(value, list) else [value]
    return [{"config": entry} if isinstance(entry, str) else entry for entry in entries]


Bases = Annotated[list[BaseConfig], BeforeValidator(_as_bases)]


class PatchConfig(_Strict):
    """A whole patch config file."""

    patches: list[PatchSpec] = Field(default_factory=list)
    extends: Bases = Field(
        default_factory=list, description="Configs that this one builds on; their patches come first."
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Names that ${NAME} in this file stands for, and their values. Without a value, who extends this "
        "config has to give one.",
    )
    defaults: TapDefaults | None = Field(None, description="What all taps of the file record alike.")
    requires: Requirement | None = Field(None, description="Releases that the config is for; others are refused.")
    tried: Requirement | None = Field(
        None, description="Releases that the config was tried with; for others, which may work, there is a note."
    )
    description: str = ""

    @model_validator(mode="after")
    def _does_something(self) -> PatchConfig:
        if not {"patches", "extends"} & self.model_fields_set:
            raise ValueError("the key 'patches' is missing")
        return self


def _exactly_one(given: dict[str, Any], what: str) -> None:
    given_values = [name for name, value in given.items() if value is not None]
    if not given_values:
        raise ValueError(f"the edit names no {what}: it needs one of {_quoted(given)}")
    if len(given_values) > 1:
        raise ValueError(f"only one {what} is allowed in one edit, got {_quoted(given_values)}")


def _quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def config_schema() -> dict[str, Any]:
    """The schema, as generated from the models that read a config."""
    schema = PatchConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "tensortap patch config"
    definitions = schema["$defs"]
    for name, fields in _ONE_OR_MANY.items():
        for field in fields:
            _allow_single(definitions[name]["properties"] if name else schema["properties"], field)
    scalar = {"type": ["string", "number", "boolean", "null"]}
    for name in ("DumpSpec", "TapDefaults", "StepSpec", "TagsSpec"):
        definitions[name]["additionalProperties"] = scalar
    extends = schema["properties"]["extends"]
    base = extends["items"]
    extends["items"] = {"anyOf": [{"type": "string"}, base]}
    extends["anyOf"] = [{"type": "string"}, base, {"type": extends.pop("type"), "items": extends.pop("items")}]
    schema["anyOf"] = [{"required": ["patches"]}, {"required": ["extends"]}]
    definitions["DumpSpec"]["properties"]["value"] = {
        **definitions["DumpSpec"]["properties"]["value"],
        "anyOf": [scalar],
    }
    return schema


_ONE_OR_MANY = {
    "": ("requires", "tried"),
    "PatchSpec": ("target", "requires"),
    "EditSpec": ("match", "assign", "wrap", "inside", "requires"),
}


def _allow_single(properties: dict[str, Any], name: str) -> None:
    """What is a list in the models may be a single value in the file."""
    field = properties[name]
    kinds: list[dict[str, Any]] = field.pop("anyOf", None) or [
        {key: field.pop(key) for key in ("type", "items", "minItems") if key in field}
    ]
    single = [kind["items"] for kind in kinds if kind.get("type") == "array"]
    field["anyOf"] = [*single, *kinds]

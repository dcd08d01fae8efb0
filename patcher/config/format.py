"""The patch config: its YAML format as pydantic models, and as a JSON schema for editors.

``docs/patch-config.md`` is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from patcher.config.tap_format import (
    DumpSpec,
    EndStepSpec,
    StepSpec,
    Strict,
    TagsSpec,
    TapDefaults,
    kind_of,
    quoted,
)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


Patterns = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
"""One pattern, or a list of alternatives: the first that matches anywhere is used."""
Requirement = Annotated[list[dict[str, str]], BeforeValidator(_as_list)]
"""Package to version specifier, such as ``{sglang: ">=0.5.9"}``; in a list, any one of them is enough."""


_SGLANG_ACTIONS = frozenset(("prepend", "append", "replacement"))
SHORT_FORMS = ("dump", "step", "end_step", "tags")
Undefined = Literal[True] | tuple[str, ...]
_UNDEFINED = "Names that code may use although nothing in reach defines them (true: any)"

Insertion = Annotated[
    Annotated[str, Tag("text")] | Annotated[bool, Tag("a flag")] | Annotated[DumpSpec, Tag("a mapping")],
    Discriminator(kind_of),
]
Wrap = Annotated[
    Annotated[Patterns, Tag("text")] | Annotated[bool, Tag("a flag")] | Annotated[DumpSpec, Tag("a mapping")],
    Discriminator(kind_of),
]


class EditSpec(Strict):
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
    prepend: str | None = Field(
        None, description="As `before`; beside `match` alone, of lines of text, as in SGLang's configs."
    )
    append: str | None = Field(
        None, description="As `after`; beside `match` alone, of lines of text, as in SGLang's configs."
    )
    replacement: str | None = Field(
        None, description="As `replace`; beside `match` alone, of lines of text, as in SGLang's configs."
    )
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
            raise ValueError(f"only one of {quoted(actions)} is allowed in one edit; make it two edits")
        short = [name for name in SHORT_FORMS if getattr(self, name) is not None]
        if len(short) > 1:
            raise ValueError(f"only one of {quoted(short)} is allowed in one edit; make it two edits")
        if not actions and not short:
            raise ValueError(
                f"the edit does nothing: it needs one of 'before', 'after', 'replace', 'wrap', {quoted(SHORT_FORMS)}"
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

    def has_the_form_of_sglang(self) -> bool:
        """Whether it says no more than an edit of SGLang's own configs can say."""
        given = {name for name in self.model_fields_set if getattr(self, name) not in (None, "", False)}
        actions = set(self.actions())
        return (
            given | actions <= {"match", *_SGLANG_ACTIONS} and actions <= _SGLANG_ACTIONS and len(self.match or ()) == 1
        )

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


class PatchSpec(Strict):
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


class BaseConfig(Strict):
    """A config that another one builds on."""

    config: str = Field(description="A file, relative to this file, or the name of a config that ships.")
    arguments: dict[str, Any] = Field(default_factory=dict, alias="with", description="Values of its parameters.")


def _as_bases(value: Any) -> Any:
    entries = value if isinstance(value, list) else [value]
    return [{"config": entry} if isinstance(entry, str) else entry for entry in entries]


Bases = Annotated[list[BaseConfig], BeforeValidator(_as_bases)]


class PatchConfig(Strict):
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
        raise ValueError(f"the edit names no {what}: it needs one of {quoted(given)}")
    if len(given_values) > 1:
        raise ValueError(f"only one {what} is allowed in one edit, got {quoted(given_values)}")


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

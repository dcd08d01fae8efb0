"""The JSON schema of a patch config, for editors."""

from __future__ import annotations

from typing import Any

from patcher.config.format import PatchConfig


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

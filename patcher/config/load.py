"""Reading a patch config: its text, its validation, and messages that name file, line and key."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from patcher.config.format import ConditionalDims, EditSpec, PatchConfig, PatchSpec
from patcher.config.shipped import locate_config, nearest_shipped
from patcher.config.tap_inputs import find_cycle
from patcher.config.yaml_source import YamlDocument, load_yaml
from patcher.errors import ConfigError


class LoadedConfig:
    """A config, its text and where its values were written."""

    def __init__(self, config: PatchConfig, document: YamlDocument) -> None:
        self.config = config
        self.document = document

    @property
    def path(self) -> str:
        """The path as it was given, or a name for a config that came as text."""
        return self.document.path


def load_config(config: str | Path) -> LoadedConfig:
    """Read a config file, given by its path or by the name of one that ships (``sglang/qwen3``).

    Raises ConfigError that names file, line and key.
    """
    path = locate_config(config)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        near = nearest_shipped(config)
        hint = f"; of the configs that ship, {' and '.join(near)} come nearest" if near else ""
        raise ConfigError(f"{config}: cannot be read: {error.strerror}{hint}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return parse_config(text, str(path))


def parse_config(text: str, path: str = "<config>") -> LoadedConfig:
    """Parse a config given as YAML text; ``path`` is what messages call it."""
    document = load_yaml(text, path)
    if not isinstance(document.data, dict):
        raise ConfigError(f"{path}:1: a patch config is a mapping with the key 'patches'")
    try:
        config = PatchConfig.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(error, document))) from None
    _refuse_cycle(config, document)
    return LoadedConfig(config, document)


def _refuse_cycle(config: PatchConfig, document: YamlDocument) -> None:
    """Within one layer no tap can be computed from itself."""
    inputs: dict[str, list[str]] = {}
    places: dict[str, tuple[str | int, ...]] = {}
    for number, patch in enumerate(config.patches):
        for where, dump in patch.dumps():
            if dump.inputs:
                inputs.setdefault(dump.name, []).extend(dump.inputs)
                places.setdefault(dump.name, ("patches", number, *where, "inputs"))
    cycle = find_cycle(inputs)
    if cycle:
        raise ConfigError(
            f"{document.origin(*places[cycle[0]])}: inputs: these taps are computed from each other: "
            f"{' <- '.join(cycle)}; what comes from the layer before is written NAME@-1"
        )


def _describe(error: ValidationError, document: YamlDocument) -> list[str]:
    problems = error.errors()
    unknown = {problem["loc"][:-1] for problem in problems if problem["type"] == "extra_forbidden"}
    found: dict[tuple[str | int, ...], list[str]] = {}
    for problem in problems:
        location = _in_file(problem["loc"], document.data)
        key = ".".join(str(part) for part in location)
        if problem["type"] == "extra_forbidden":
            text = f"unknown key '{problem['loc'][-1]}'{_nearest_key(location, str(problem['loc'][-1]))}"
        elif problem["type"] == "missing":
            if problem["loc"][:-1] in unknown:  # most likely the same key, misspelt
                continue
            text = f"the key '{problem['loc'][-1]}' is missing"
        else:
            text = problem["msg"].removeprefix("Value error, ")
            text = text if location in found or not key else f"{key}: {text}"
        texts = found.setdefault(location, [])
        if text not in texts:
            texts.append(text)
    return [f"{document.origin(*location)}: {'; or '.join(texts)}" for location, texts in found.items()]


def _in_file(location: tuple[str | int, ...], data: Any) -> tuple[str | int, ...]:
    """The parts of pydantic's location that are keys in the file, without its names for alternatives."""
    parts: list[str | int] = []
    for part in location:
        index = isinstance(part, int) and isinstance(data, list) and part < len(data)
        if index or (isinstance(data, dict) and part in data):
            data = data[part]
            parts.append(part)
    return tuple(parts)


def _nearest_key(location: tuple[str | int, ...], key: str) -> str:
    model: type[BaseModel] = PatchConfig
    if location[-2:-1] == ("dims",):
        model = ConditionalDims
    elif "edits" in location:
        model = EditSpec
    elif "patches" in location:
        model = PatchSpec
    known = [field.alias or name for name, field in model.model_fields.items()]
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean '{nearest[0]}'?"
    return f"; known keys: {', '.join(known)}"

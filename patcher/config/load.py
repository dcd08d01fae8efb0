"""Reading a patch config: its text, its validation, and messages that name file, line and key."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from patcher.config.format import BaseConfig, EditSpec, PatchConfig, PatchSpec
from patcher.config.shipped import locate_config, nearest_shipped
from patcher.config.tap_format import ConditionalDims
from patcher.config.tap_inputs import find_cycle
from patcher.config.templates import with_defaults, with_parameters
from patcher.config.yaml_source import Origin, YamlDocument, load_yaml
from patcher.errors import ConfigError


@dataclass(frozen=True)
class ConfigFile:
    """One file of a config, and where its values were written."""

    config: PatchConfig
    document: YamlDocument


@dataclass(frozen=True)
class LoadedConfig:
    """A config and the configs that it builds on."""

    path: str
    """As it was given, or a name for a config that came as text."""
    text: str
    files: tuple[ConfigFile, ...]
    """Those that it builds on first, itself last."""
    bases: Mapping[str, str] = field(default_factory=dict)
    """Absolute path and text of each file that it builds on."""


def load_config(config: str | Path) -> LoadedConfig:
    """Read a config file, given by its path or by the name of one that ships (``sglang/qwen3``).

    Raises ConfigError that names file, line and key.
    """
    path = locate_config(config)
    return parse_config(_read(path, str(config)), str(path))


def parse_config(text: str, path: str = "<config>", bases: Mapping[str, str] | None = None) -> LoadedConfig:
    """Parse a config given as YAML text; ``path`` is what messages call it.

    ``bases`` holds the texts of files that it builds on, by absolute path; those that are not in it are read.
    """
    reader = _Reader(dict(bases or {}))
    files = reader.files_of(load_yaml(text, path), {}, ())
    _refuse_cycle(files)
    return LoadedConfig(path, text, tuple(files), reader.used)


def configs_to_json(configs: Sequence[LoadedConfig]) -> str:
    """Configs as one line of text that ``configs_from_json`` reads without their files."""
    return json.dumps([[_absolute(config.path), config.text, dict(config.bases)] for config in configs])


def configs_from_json(text: str) -> list[LoadedConfig]:
    """The configs that ``configs_to_json`` wrote."""
    return [parse_config(text, path, bases) for path, text, bases in json.loads(text)]


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else path


def _read(path: Path, given: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        near = nearest_shipped(given)
        hint = f"; of the configs that ship, {' and '.join(near)} come nearest" if near else ""
        raise ConfigError(f"{given}: cannot be read: {error.strerror}{hint}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None


class _Reader:
    """Reads a config and, before it, those that it builds on."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.used: dict[str, str] = {}

    def files_of(
        self, document: YamlDocument, arguments: Mapping[str, Any], extended_by: tuple[str, ...]
    ) -> list[ConfigFile]:
        """The files of one config, in the order in which their patches apply."""
        if not isinstance(document.data, dict):
            raise ConfigError(f"{document.path}:1: a patch config is a mapping with the key 'patches'")
        document = with_parameters(document, arguments)
        _validate(document)
        document = with_defaults(document)
        config = _validate(document)
        files: list[ConfigFile] = []
        for number, base in enumerate(config.extends):
            origin = document.origin("extends", number)
            try:
                inner, key = self._base(base.config, document.path)
                if key in extended_by:
                    raise ConfigError(f"{base.config} builds on itself")
                files += self.files_of(inner, base.arguments, (*extended_by, key))
            except ConfigError as error:
                raise ConfigError(f"{origin}: extends: {error}") from None
        return [*files, ConfigFile(config, document)]

    def _base(self, name: str, extending: str) -> tuple[YamlDocument, str]:
        beside = Path(extending).parent / name
        shipped = locate_config(name)
        known = next((path for path in (beside, shipped) if _key(path) in self.texts), None)
        path = known or (beside if beside.is_file() else shipped)
        key = _key(path)
        if key not in self.texts:
            self.texts[key] = _read(path, name)
        self.used[key] = self.texts[key]
        return load_yaml(self.texts[key], str(path)), key


def _key(path: Path) -> str:
    return str(path.resolve())


def _validate(document: YamlDocument) -> PatchConfig:
    try:
        return PatchConfig.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(error, document))) from None


def _refuse_cycle(files: Sequence[ConfigFile]) -> None:
    """Within one layer no tap can be computed from itself."""
    inputs: dict[str, list[str]] = {}
    origins: dict[str, Origin] = {}
    for file in files:
        for number, patch in enumerate(file.config.patches):
            for where, dump in patch.dumps():
                if dump.inputs:
                    inputs.setdefault(dump.name, []).extend(dump.inputs)
                    origins.setdefault(dump.name, file.document.origin("patches", number, *where, "inputs"))
    cycle = find_cycle(inputs)
    if cycle:
        raise ConfigError(
            f"{origins[cycle[0]]}: inputs: these taps are computed from each other: "
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
    if "extends" in location:
        model = BaseConfig
    elif location[-2:-1] == ("dims",):
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

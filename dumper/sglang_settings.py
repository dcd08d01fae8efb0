"""The settings of SGLang's dumper by their names there, as ours: its ``DUMPER_`` variables and what its ``configure``
takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "DUMPER_"
SWITCH = "TENSORTAP_SGLANG_ENV"
"""Set to 1: ``DUMPER_`` variables count where the ``TENSORTAP_`` variable of the same setting is not set."""

RENAMED = {"exp_name": "run", "server_port": "http_port"}
SAME = (
    "enable",
    "filter",
    "dir",
    "enable_value",
    "enable_grad",
    "enable_model_value",
    "enable_model_grad",
    "cleanup_previous",
    "non_intrusive_mode",
)
WITHOUT_EFFECT = ("enable_output_console", "collective_timeout", "include_parallel_rank_in_filename")
"""Nothing is printed, ranks do not wait for each other, and a rank has a file of its own."""
_FILE = "a recording goes to files; dumper.capture_output() records into memory"
_PATCHES = "give the config to python -m patcher run -c"
_GRAFTER = "values are not passed from one program to another; record both and compare them"


def our_name(key: str) -> str:
    """What a setting of SGLang's is called here; any other name as it is."""
    return RENAMED.get(key, key)


def our_value(key: str, value: Any) -> Any:
    """The value of a setting of SGLang's (``key`` is its name there) as ours. Raises ValueError."""
    if key == "server_port":
        if str(value).strip() == "reuse":
            raise ValueError("'reuse' is not possible: the port of the server is not ours; give a port of its own")
        text = str(value).strip()
        return None if text.startswith("-") or text == "0" else value
    return value


def without_counterpart(key: str, value: Any) -> str | None:
    """Why a setting of SGLang's with this value cannot be had here; None where it can, or nothing is lost."""
    off = str(value).strip().lower() in ("", "0", "false", "none")
    if key == "enable_output_file":
        return _FILE if off else None
    if key == "source_patcher_config":
        return None if off else _PATCHES
    if key.startswith("grafter_"):
        return _GRAFTER if key == "grafter_enable" and not off else None
    return None


def is_known(key: str) -> bool:
    """Whether SGLang's dumper has a setting of this name that ours has not."""
    return (
        key in RENAMED
        or key in WITHOUT_EFFECT
        or key in ("enable_output_file", "source_patcher_config")
        or key.startswith("grafter_")
    )


def asked_for(environment: Mapping[str, str]) -> dict[str, str]:
    """What the ``DUMPER_`` variables say, by SGLang's name of the setting; nothing unless ``SWITCH`` is on."""
    if environment.get(SWITCH, "").strip().lower() not in ("1", "true", "yes", "on"):
        return {}
    # An empty variable is as good as none, as there.
    return {
        name.removeprefix(PREFIX).lower(): text
        for name, text in environment.items()
        if name.startswith(PREFIX) and text.strip()
    }

"""What can be changed while a run records, and how each change is said and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dumper.rules.step_rule import StepRule

Changes = dict[str, Any]
"""Settings by name, and ``reset: True``; any of them."""

SWITCHES = ("enable", "enable_value", "enable_grad", "enable_model_value", "enable_model_grad")
PLACES = ("dir", "run")
"""Where the files are; they stay as they are when all else is set back."""
_RULES = ("filter", "level", "steps")
KEYS = (*SWITCHES, *_RULES, *PLACES, "reset")
_RENAMED = {"exp_name": "run"}
"""SGLang's word for it, and ours."""
_NEXT_STEPS = re.compile(r"next (\d+)")


def check(changes: Mapping[str, Any]) -> Changes:
    """The changes, when every one can be applied. Raises ValueError that names the key and says what to do."""
    changes = {_RENAMED.get(key, key): value for key, value in changes.items()}
    unknown = [key for key in changes if key not in KEYS]
    if unknown:
        raise ValueError(f"cannot change {unknown[0]!r} while a run records; what can be changed: {', '.join(KEYS)}")
    if not changes:
        raise ValueError(f"nothing to change; what can be changed: {', '.join(KEYS)}")
    for key in (*SWITCHES, "reset"):
        if key in changes and not isinstance(changes[key], bool):
            raise ValueError(f"{key} is true or false, not {changes[key]!r}")
    for key in (*_RULES, *PLACES):
        if key in changes and not isinstance(changes[key], str if key in PLACES else str | None):
            raise ValueError(f"{key} is a text, not {changes[key]!r}")
    steps = changes.get("steps")
    if steps and not _NEXT_STEPS.fullmatch(steps):
        StepRule.parse(steps)
    _check_with_recorder(changes)
    return dict(changes)


def _check_with_recorder(changes: Mapping[str, Any]) -> None:
    """Filters and levels are the recorder's own languages; it checks them as it does those of ``configure``."""
    for key in ("filter", "level", *PLACES):
        if changes.get(key) or (key in PLACES and key in changes):
            from dumper.settings import check_setting

            check_setting(key, changes[key])


def resolve(changes: Changes, step: int) -> Changes:
    """The changes as settings, for a rank at the step in which they take effect: ``next 5`` becomes ``7-11``."""
    resolved = dict(changes)
    found = _NEXT_STEPS.fullmatch(resolved.get("steps") or "")
    if found:
        resolved["steps"] = f"{step}-{step + int(found[1]) - 1}"
    return resolved


def describe(changes: Changes) -> str:
    """One line for people."""
    words = []
    if changes.get("reset"):
        words.append("settings as at the start")
    if "enable" in changes:
        words.append("recording on" if changes["enable"] else "recording off")
    for key in _RULES:
        if key in changes:
            words.append(f"{key} {changes[key] or 'all'}")
    words += [f"{key} {'on' if changes[key] else 'off'}" for key in SWITCHES[1:] if key in changes]
    words += [f"{key} {changes[key]}" for key in PLACES if key in changes]
    return ", ".join(words)

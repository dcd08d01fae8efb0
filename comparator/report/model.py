"""What every record of a report, and every part of one, is: plain data that becomes one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Plain data; making one costs little, since a report has thousands. ``kw_only`` is not inherited."""

    def model_dump(self) -> dict[str, Any]:
        """The record as dicts, lists and plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=_plain)
        return plain

    def model_dump_json(self) -> str:
        """One line of JSON. NaN and infinity, which JSON does not have, become null, as in SGLang's report."""
        try:
            return msgspec.json.encode(self, enc_hook=_plain).decode()
        except (OverflowError, UnicodeEncodeError):  # integers beyond 64 bits, text that is no Unicode
            return json.dumps(_with_null(self.model_dump()), separators=(",", ":"))


def _plain(value: object) -> Any:
    """The plain number of a numpy scalar: ``np.float64`` is a float to Python and to mypy, but not to msgspec."""
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"a {type(value).__name__} is no plain data")


def _with_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Floors that were measured on runs that agree. They may only raise what is shipped.

Thresholds learned from few clean pairs raised alarms on unseen ones in every trial: a floor from a run that happens to
agree well says little, one from runs that agree badly says that this much is normal here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from comparator.diagnosis.tap_rows import TapKey

if TYPE_CHECKING:
    from comparator.diagnosis.verdict import Diagnosis

FORMAT = "tensortap-calibration"
VERSION = 1


class CalibrationError(ValueError):
    """A calibration file that cannot be used, in one sentence that names it."""


class Calibration(Struct, frozen=True):
    """Floors of taps: relative L2 error of a row."""

    floors: Mapping[str, float] = field(default_factory=dict)
    """Tap name, or name and layer (``attn_output layer 3``), to floor."""
    source: str = ""
    """The file, for messages."""

    def raised(self, key: TapKey, floor: float) -> float:
        """The larger of the shipped floor and the measured one."""
        return max(floor, self.floors.get(key.label, 0.0), self.floors.get(key.name, 0.0))

    def unknown_taps(self, keys: Sequence[TapKey]) -> tuple[str, ...]:
        """Entries for taps that are not recorded."""
        known = {key.label for key in keys} | {key.name for key in keys}
        return tuple(name for name in self.floors if name not in known)


def calibrate(diagnoses: Sequence[Diagnosis]) -> Calibration:
    """Floors from pairs of runs that should agree: per tap what makes all its growth tests pass with room to spare.

    A tap whose errors the shipped floor explains is left out, so the file lists only what is special here.
    """
    floors: dict[str, float] = {}
    for diagnosis in diagnoses:
        for judgement in diagnosis.judgements:
            if judgement.judged != "not-judged" and judgement.introduced > judgement.floor > 0:
                label = judgement.key.label
                floors[label] = max(floors.get(label, 0.0), judgement.introduced)
    return Calibration(floors)


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a JSON file that can be committed."""
    content = {"format": FORMAT, "version": VERSION, "floors": dict(sorted(calibration.floors.items()))}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """Read what ``write_calibration`` wrote; raises CalibrationError with the file and what is wrong with it."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CalibrationError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CalibrationError(f"{path} is no calibration file; python -m comparator calibrate writes one")
    version = content.get("version")
    if version != VERSION:
        raise CalibrationError(f"{path} has version {version!r}, this tensortap reads version {VERSION}; update it")
    floors = content.get("floors")
    if not isinstance(floors, dict):
        raise CalibrationError(f"{path}: 'floors' must map tap names to numbers")
    for name, floor in floors.items():
        number = isinstance(floor, (int, float)) and not isinstance(floor, bool)
        if not number or not 0 <= floor < float("inf"):
            raise CalibrationError(f"{path}: the floor of {name!r} must be a number from 0 on, not {floor!r}")
    return Calibration({str(name): float(floor) for name, floor in floors.items()}, str(path))

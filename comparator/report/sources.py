"""Where taps are in the source: the line with what stands around it, and the part of the patch config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dumper.reading.protocol import Run, TapCoverage

LINES_AROUND = 6
MOST_TAPS = 500
MOST_BYTES = 4 << 20
"""Of a source file that is read."""


@dataclass(frozen=True)
class TapSource:
    """What is known of one tap's place."""

    file: str
    line: int
    first: int
    """Number of the first line of ``lines``."""
    lines: tuple[str, ...]
    """Of the file as it is on this machine now; empty where it is not here."""
    config: str
    """File name of the patch config; empty where it is not known."""
    config_lines: tuple[str, ...]
    """Its edit."""


Sources = Mapping[str, TapSource]
"""By the id of the tap."""


def sources(baseline: Run, target: Run) -> Sources:
    """Where the taps of both runs are; the target's win."""
    found: dict[str, TapSource] = {}
    for run in (target, baseline):
        texts = _config_texts(run)
        for tap in run.taps:
            if tap.kind == "dump" and tap.id not in found and len(found) < MOST_TAPS:
                found[tap.id] = _source_of(tap, texts)
    return found


def _source_of(tap: TapCoverage, texts: Mapping[str, str]) -> TapSource:
    lines = _lines_of(tap)
    first = max(0, tap.line - 1 - LINES_AROUND)
    around = tuple(lines[first : tap.line + LINES_AROUND])
    nothing: tuple[str, tuple[str, ...]] = ("", ())
    config, config_lines = next(_edits(tap, texts, strict=True), None) or next(
        _edits(tap, texts, strict=False), nothing
    )
    return TapSource(_short_path(tap.file), tap.line, first + 1, around, config, config_lines)


def _short_path(file: str) -> str:
    """The path below the environment's packages, where it is there."""
    for folder in ("site-packages/", "dist-packages/"):
        if folder in file:
            return file.rpartition(folder)[2]
    return file


def _lines_of(tap: TapCoverage) -> list[str]:
    """The source file's lines.

    A recording names files, and may come from somebody else: only a Python file whose path is that of the tap's module
    is read, so that nothing else of this machine gets into a report.
    """
    path = Path(tap.file)
    module = tap.id.partition("#")[0].split(".")
    stem = [*path.parts[:-1], path.stem]
    fits = path.suffix == ".py" and any(
        stem[-length:] == module[:length] for length in range(2, min(len(module), len(stem)) + 1)
    )
    try:
        if fits and path.is_file() and path.stat().st_size <= MOST_BYTES:
            return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        pass
    return []


def _config_texts(run: Run) -> dict[str, str]:
    texts: dict[str, str] = {}
    for header in run.headers.values():
        found = (header.patch_config or {}).get("texts")
        if isinstance(found, Mapping):
            texts.update({str(name): str(text) for name, text in found.items()})
    return texts


def _edits(tap: TapCoverage, texts: Mapping[str, str], *, strict: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The edits that record the tap, found in the text of the configs; unless ``strict``, of any target, because a
    template may make the target's name."""
    target = tap.id.partition("#")[0]
    named = re.compile(rf"""^\s*(?:-\s*)?name:\s*["']?{re.escape(tap.name)}["']?\s*$""")
    for path, text in texts.items():
        inside = False
        lines = text.splitlines()
        for at, line in enumerate(lines):
            if "target:" in line:
                inside = line.split("target:", 1)[1].strip().strip("\"'") == target
            elif (inside or not strict) and named.match(line):
                start = next((back for back in range(at, -1, -1) if lines[back].lstrip().startswith("- ")), at)
                indent = len(lines[start]) - len(lines[start].lstrip())
                end = next(
                    (
                        on
                        for on in range(at + 1, len(lines))
                        if lines[on].strip() and len(lines[on]) - len(lines[on].lstrip()) <= indent
                    ),
                    len(lines),
                )
                yield Path(path).name, tuple(lines[start:end])

"""Sections of ``docs/benchmarks.md``: each script replaces its own and leaves the others alone."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_TITLE = """# Benchmarks

Each section is written by the script that it names and says how its figures were taken. Sides that are compared took
turns on one machine. Ratios carry over to other machines; absolute figures do not. The tests hold some of them:
`tests/speed` fails where a factor of two is lost.
"""


def write_section(name: str, text: str, document: Path = DOCUMENT) -> None:
    """Put ``text`` (Markdown) between the markers of section ``name``, added at the end when it is new."""
    content = document.read_text(encoding="utf-8") if document.exists() else _TITLE
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(content):
        content = pattern.sub(lambda _: section, content)
    else:
        content = f"{content.rstrip()}\n\n{section}\n"
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(content, encoding="utf-8")


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """What the figures were taken on, in a few words."""
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"

"""Modules of fewer than 60 lines stand alone where docs/modules.md says why; the others are part of their user."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from testbed.paths import CHECKOUT

SMALL = 60
"""Lines below which a module is small."""


def modules() -> dict[str, Path]:
    """Every module of what ships, by its name as a path: ``comparator/engine/protocol``."""
    files = (
        file
        for package in ("patcher", "dumper", "comparator", "tensortap")
        for file in (CHECKOUT / package).rglob("*.py")
    )
    return {str(file.relative_to(CHECKOUT).with_suffix("")).removesuffix("/__init__"): file for file in files}


def imported(file: Path) -> Iterator[str]:
    """What a file imports, anywhere in it: modules, and names that may be modules."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.replace(".", "/") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            folder = node.module.replace(".", "/")
            yield folder
            yield from (f"{folder}/{alias.name}" for alias in node.names)


def small_modules() -> set[str]:
    """Those of what ships; not ``__init__`` and ``__main__``, which Python looks for by their names."""
    return {
        name
        for name, file in modules().items()
        if not file.name.startswith("_") and len(file.read_text().splitlines()) < SMALL
    }


def listed(heading: str) -> dict[str, str]:
    """The lines of a list of docs/modules.md: module and reason."""
    page = (CHECKOUT / "docs/modules.md").read_text()
    section = page.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    return dict(re.findall(r"^- `([a-z0-9_/]+)`: (\S.*)$", section, flags=re.MULTILINE))


def test_small_modules_stand_alone_for_a_reason() -> None:
    named = listed("Used by several") | listed("Used by one")
    unexplained = small_modules() - named.keys()
    assert not unexplained, "merge each into the module that uses it, or give its reason in docs/modules.md"
    assert not named.keys() - small_modules(), "docs/modules.md explains small modules that are gone or have grown"


def test_what_is_said_to_have_several_users_has() -> None:
    users: dict[str, set[str]] = {}
    for name, file in modules().items():
        for used in imported(file):
            users.setdefault(used, set()).add(name)
    of_one = {name for name in listed("Used by several") if len(users.get(name, set()) - {name}) < 2}
    assert not of_one, "modules with one user are part of it, or a boundary of the other list"


def test_a_file_name_of_the_comparator_stands_for_one_thing() -> None:
    """But for the references of compiled modules: a reader who is told of ``planner`` finds one."""
    names = Counter(Path(name).name for name, file in modules().items() if name.startswith("comparator/") and
                    file.name not in ("__init__.py", "reference.py"))  # fmt: skip
    assert not {name for name, count in names.items() if count > 1}

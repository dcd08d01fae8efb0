"""What the documentation points to exists."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from comparator.messages import MESSAGES
from testbed.paths import CHECKOUT
from tests.harness.documents import PAGES, blocks

LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """Names that headings get: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path
        assert target.exists(), f"{page.name} links to {path}, which is not there"
        assert not anchor or anchor in anchors(target), f"{path} has no heading for #{anchor}"


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (CHECKOUT / "README.md").read_text()
    missing = [page.name for page in CHECKOUT.glob("docs/*.md") if f"docs/{page.name}" not in readme]
    assert not missing, "docs that nobody finds"


def test_the_listing_of_folders_is_complete() -> None:
    """CONTRIBUTING.md names every folder of the repository, and no other."""
    (listing,) = (block.text for block in blocks("text") if block.page == "CONTRIBUTING.md")
    named = set(re.findall(r"^([a-z]+)/ ", listing, flags=re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout: which folders belong to the repository is not known")
    there = {line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    assert named == {folder for folder in there if not folder.startswith(".")}


def problem_kinds() -> set[str]:
    """The first argument of every ``Problem(…)`` that the dumper makes."""
    calls = (
        node
        for file in (CHECKOUT / "dumper").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem"
    )
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


def test_every_message_has_a_paragraph_and_no_other_has() -> None:
    page = (CHECKOUT / "docs/messages.md").read_text()
    described = re.findall(r"^### (\S+)\n\n\S", page, flags=re.MULTILINE)
    assert sorted(described) == sorted(MESSAGES)


def test_the_comparator_names_every_problem_of_a_run() -> None:
    kinds = problem_kinds()
    assert kinds
    assert {kind.replace("_", "-") for kind in kinds} <= set(MESSAGES)


@pytest.mark.parametrize("package", ["patcher", "dumper", "comparator"])
def test_every_module_has_a_place_in_the_docs(package: str) -> None:
    page = (CHECKOUT / "docs/modules.md").read_text()
    section = page.partition(f"\n## {package}\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z_/]+)`", section))
    whole_folders = {folder.rstrip("/") for folder in named} & {
        "adapters",
        "check",
        "html",
        "kernel",
        "startup",
        "tokens",
    }
    missing = [
        str(module.relative_to(CHECKOUT))
        for module in sorted((CHECKOUT / package).rglob("*.py"))
        if not module.name.startswith("_") and module.stem not in named and module.parent.name not in whole_folders
    ]
    assert not missing, "modules that a reader of docs/modules.md does not find"

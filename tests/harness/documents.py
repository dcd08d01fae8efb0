"""The pages of the documentation, and the code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt

from testbed.paths import CHECKOUT

PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")])
NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
"""The comment before a block that cannot run, with the reason."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    """In the page, counted from 1."""
    language: str
    text: str
    not_run: str | None
    """Why it cannot run; None for a block that can."""

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def _read_blocks() -> Iterator[Block]:
    for page in PAGES:
        before = ""
        for token in MarkdownIt().parse(page.read_text()):
            if token.type == "fence":
                assert token.map is not None
                reason = NOT_RUN.search(before)
                yield Block(page.name, token.map[0] + 1, token.info, token.content, reason[1] if reason else None)
            before = token.content if token.type == "html_block" else ""


BLOCKS = tuple(_read_blocks())


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def code_spans() -> Iterator[tuple[str, str]]:
    """Page and text of every piece of code within a line."""
    for page in PAGES:
        for token in MarkdownIt().enable("table").parse(page.read_text()):
            for child in token.children or ():
                if child.type == "code_inline":
                    yield page.name, child.content

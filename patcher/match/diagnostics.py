"""Messages for edits that do not land: where the pattern is found too often, and what comes near it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from patcher.match.matcher import flatten
from patcher.match.search import Site
from patcher.match.statements import FunctionIndex, start_of
from patcher.plan.edits import Edit

_SHOWN = 3
_ALIKE_FROM = 3
"""Characters in a row; shorter runs are found in any long text."""


def times(count: int) -> str:
    """``once``, ``twice``, ``3 times``."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def places(sites: Sequence[tuple[FunctionIndex, Site]]) -> str:
    """One line per site: line number and code."""
    return "\n".join(
        f"  {number}. line {line_of(index, site)}: {one_line(index.view.text_of(site.node), 90)}"
        for number, (index, site) in enumerate(sites, start=1)
    )


def line_of(index: FunctionIndex, site: Site) -> int:
    """Original line number of a site."""
    return index.view.line_at(start_of(index.view, site.node)[0]).origin


def one_line(code: str, width: int) -> str:
    """Code on one line, cut to ``width`` characters."""
    text = " ".join(code.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def ambiguous(edit: Edit, sites: Sequence[tuple[FunctionIndex, Site]]) -> str:
    """A pattern that is found more than once."""
    return (
        f"{edit.origin}: {edit.summary} is found {times(len(sites))}; "
        f"narrow it with 'inside', or choose with 'nth: 1', 'nth: -1' or 'nth: all':\n{places(sites)}"
    )


def no_match(edit: Edit, indexes: Sequence[FunctionIndex]) -> str:
    """A pattern that is found nowhere, with the statements that come nearest, best first."""
    within = f" inside {edit.inside[0]!r}" if edit.inside else ""
    message = f"{edit.origin}: {edit.summary} is found nowhere{within}"
    if not edit.patterns:
        return message
    nearest = nearest_statements(edit.patterns, indexes)
    if not nearest:
        return message
    return message + "; nearest:\n" + "\n".join(nearest)


def nearest_statements(patterns: Sequence[str], indexes: Sequence[FunctionIndex]) -> list[str]:
    """The statements most like any of the patterns, each with its line and a small diff."""
    scored: list[tuple[float, int, str, str]] = []
    for index in indexes:
        for statement in index.in_order:
            text = index.view.text_of(statement.node)
            head = text.split("\n")[0] if flatten_body(statement.node) else text
            code = one_line(head, 300)
            best = max(patterns, key=lambda pattern: likeness(pattern, code))
            line = index.view.line_at(start_of(index.view, statement.node)[0]).origin
            scored.append((likeness(best, code), line, code, one_line(best, 300)))
    scored.sort(key=lambda item: (-item[0], item[1]))
    return [
        f"  line {line}:\n    - {pattern}\n    + {code}"
        for score, line, code, pattern in scored[:_SHOWN]
        if score > 0.3
    ]


def flatten_body(node: object) -> bool:
    """Whether a node is a compound statement with a body."""
    body = getattr(node, "body", None)
    return body is not None and hasattr(body, "body") and bool(flatten(body))


def likeness(pattern: str, code: str) -> float:
    """0 to 1; where the pattern has ``...``, what that stands for counts neither for nor against."""
    pattern = one_line(pattern, 300)
    if "..." not in pattern:
        return difflib.SequenceMatcher(None, pattern, code, autojunk=False).ratio()
    literal = pattern.replace("...", "")
    blocks = difflib.SequenceMatcher(None, literal, code, autojunk=False).get_matching_blocks()
    alike = sum(block.size for block in blocks if block.size >= _ALIKE_FROM)
    return alike / max(len(literal), 1)

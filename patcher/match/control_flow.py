"""Whether a function can end without a return statement."""

from __future__ import annotations

import libcst as cst

from patcher.match.matcher import StatementNode, flatten
from patcher.match.statements import Block


def falls_through(body: Block) -> bool:
    """Whether control can reach the end of a function's body. Says yes when it cannot tell."""
    return _passes([statement.node for statement in body.statements])


def _passes(statements: list[StatementNode]) -> bool:
    return all(_passes_one(statement) for statement in statements)


def _passes_one(node: StatementNode) -> bool:
    if isinstance(node, (cst.Return, cst.Raise, cst.Continue, cst.Break)):
        return False
    if isinstance(node, cst.If):
        return _if_passes(node)
    if isinstance(node, cst.While):
        endless = isinstance(node.test, cst.Name) and node.test.value == "True"
        return not endless or _breaks(flatten(node.body))
    if isinstance(node, cst.With):
        # A context manager may swallow an exception, but never a return.
        return _passes(flatten(node.body)) or _raises(flatten(node.body))
    if isinstance(node, (cst.Try, cst.TryStar)):
        return _try_passes(node)
    return True


def _if_passes(node: cst.If) -> bool:
    if node.orelse is None or _passes(flatten(node.body)):
        return True
    return _if_passes(node.orelse) if isinstance(node.orelse, cst.If) else _passes(flatten(node.orelse.body))


def _try_passes(node: cst.Try | cst.TryStar) -> bool:
    if node.finalbody is not None and not _passes(flatten(node.finalbody.body)):
        return False
    end = _passes(flatten(node.body))
    if end and node.orelse is not None:
        end = _passes(flatten(node.orelse.body))
    return end or any(_passes(flatten(handler.body)) for handler in node.handlers)


def _breaks(statements: list[StatementNode]) -> bool:
    """Whether a ``break`` of the loop that holds these statements is among them."""
    for node in statements:
        if isinstance(node, cst.Break):
            return True
        if isinstance(node, (cst.For, cst.While, cst.FunctionDef, cst.ClassDef)):
            orelse = getattr(node, "orelse", None)
            if orelse is not None and _breaks(flatten(orelse.body)):
                return True
            continue
        if any(_breaks(flatten(suite)) for suite in _suites(node)):
            return True
    return False


def _raises(statements: list[StatementNode]) -> bool:
    return any(isinstance(node, cst.Raise) for node in statements)


def _suites(node: cst.CSTNode) -> list[cst.BaseSuite]:
    found: list[cst.BaseSuite] = []
    for child in node.children:
        if isinstance(child, cst.BaseSuite):
            found.append(child)
        elif isinstance(child, _PARTS):
            found.extend(_suites(child))
    return found


_PARTS = (cst.If, cst.Else, cst.Finally, cst.ExceptHandler, cst.ExceptStarHandler, cst.MatchCase)

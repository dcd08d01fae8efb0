"""Which rows of two runs are the same token. ``docs/alignment.md`` gives the reasoning."""

from comparator.plan.tokens.aligner import build_token_aligner
from comparator.plan.tokens.interface import RowsClass, RowsQuery, SideLayouts, TokenAligner, TokenPart, TokenPlan
from comparator.plan.tokens.one_sided import counts_against

__all__ = [
    "RowsClass",
    "RowsQuery",
    "SideLayouts",
    "TokenAligner",
    "TokenPart",
    "TokenPlan",
    "build_token_aligner",
    "counts_against",
]

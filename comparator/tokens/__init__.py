"""Which rows of two runs are the same token. ``docs/alignment.md`` gives the reasoning."""

from comparator.tokens.aligner import build_token_aligner
from comparator.tokens.interface import RowsClass, RowsQuery, SideLayouts, TokenAligner, TokenPart, TokenPlan
from comparator.tokens.reasons import counts_against

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

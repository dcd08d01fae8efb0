"""Pairs of dumps that SGLang's own dumper made, judged by the rules of SGLang's own comparator.

Whoever moves from one to the other gets the verdicts and the exit codes they had; ``docs/coming-from-sglang.md``
lists where ours differ, and why. A dump of SGLang's against a run of ours follows our rules.
"""

from comparator.sglang_compat.adapt import adapt, is_sglang_dump, without_batches
from comparator.sglang_compat.compare import compare_sglang_pair
from comparator.sglang_compat.pairs import match_sglang_bundles

__all__ = ["adapt", "compare_sglang_pair", "is_sglang_dump", "match_sglang_bundles", "without_batches"]

"""At which level a pair of tensors can be compared, by the levels of its records."""

from __future__ import annotations

from comparator.errors import PairError
from comparator.match.bundles import BundlePair


def reduced_level(pair: BundlePair) -> str | None:
    """The level at which a pair of tensors is compared when it is not ``full`` on both sides.

    Raises PairError for levels that do not go together.
    """
    assert pair.baseline is not None
    assert pair.target is not None
    levels = {entry.record.level for entry in (*pair.baseline.entries, *pair.target.entries)}
    if levels <= {"full"}:
        return None
    if levels == {"sample"}:
        return "sample"
    if "hash" in levels and levels <= {"hash", "full"}:
        return "hash"
    if levels <= {"stats", "full"}:
        return "stats"
    raise PairError(
        f"it is recorded at levels that cannot be compared: {', '.join(sorted(levels))}",
        hint="record it at level full on both sides",
        name="levels-differ",
    )

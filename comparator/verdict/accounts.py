"""What became of every row that was recorded: compared, or left out for a reason. Numbers in, accounts out.

A row is one along the token dimension of the whole tensor (after its shards were put together), or one tensor or value
that has no token dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.match.entries import Entry
from comparator.measure.measurement import Failure, Measurement, Skipped, TensorMeasurement
from comparator.options import SIDES, Options, Side
from comparator.patterns import fullmatch
from comparator.plan.facts import TokenNumbers
from comparator.plan.selection import Selected
from comparator.plan.tokens.one_sided import NO_SEQUENCE
from comparator.verdict.judge import Said, say
from tensortap.dims import DimsError, count_rows, parse_dims

PADDING = "padding"
COMPUTED_AGAIN = "computed again later"
"""Of a token that several passes computed, the last row is compared."""
UNPAIRED = "no counterpart in {side}"
NOT_COMPARABLE = "could not be compared"
SHAPES_DIFFER = "shapes differ"
MOST_NAMED = 5
"""Names that one message lists."""
_SKIPPED = frozenset({"request-ids", "record-of-batch"})
"""Reasons (names of messages) of pairs that are not meant to be compared."""


class SideAccount(Struct):
    """The rows of one name on one side."""

    recorded: int = 0
    compared: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason to number of rows; with ``compared`` they add up to ``recorded``."""
    pairs: int = 0
    """Tensors and values of the name, over all tags and steps."""
    unpaired: list[str] = field(default_factory=list)
    """Those of them that the other side lacks."""

    def leave_out(self, reason: str, rows: int) -> None:
        """Count rows that were not compared."""
        if rows > 0:
            self.left_out[reason] = self.left_out.get(reason, 0) + rows


class NameAccount(Struct):
    """Both sides of one name. Gradients and recomputed values of a name are accounted for by themselves."""

    name: str
    sides: Mapping[Side, SideAccount] = field(default_factory=lambda: {side: SideAccount() for side in SIDES})

    def lacks(self, side: Side) -> bool:
        """Whether ``side`` recorded nothing under the name."""
        return not self.sides[side].pairs


class Accounts:
    """The accounts of all names, filled pair by pair."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._names: dict[str, NameAccount] = {}
        self.compared_anything = False
        """Whether at least one element, value or fingerprint was held against another, or could not be."""

    @property
    def names(self) -> tuple[NameAccount, ...]:
        """In the order in which the names were first met."""
        return tuple(self._names.values())

    @property
    def paired(self) -> bool:
        """Whether both sides have a name in common."""
        return any(not account.lacks("baseline") and not account.lacks("target") for account in self.names)

    def unpaired_of_shared_names(self, side: Side) -> list[str]:
        """What only ``side`` has, of names that both have and that may not be skipped."""
        allowed = self._options.allow_skipped_pattern
        return [
            label
            for account in self.names
            if not account.lacks("baseline") and not account.lacks("target")
            if allowed is None or not fullmatch(allowed, account.name.split(" ")[0])
            for label in account.sides[side].unpaired
        ]

    def add(self, selected: Selected, measurement: Measurement) -> None:
        """Account for one row of the table of measurements."""
        pair = selected.pair
        name = _account_name(pair)
        account = self._names.get(name)
        if account is None:
            account = self._names[name] = NameAccount(name)
        self.compared_anything |= _compares_something(measurement)
        tokens = measurement.tokens if isinstance(measurement, TensorMeasurement) else None
        for side in SIDES:
            bundle = pair.baseline if side == "baseline" else pair.target
            if bundle is None:
                continue
            mine = account.sides[side]
            mine.pairs += 1
            if tokens is not None:
                _add_tokens(mine, tokens, side, compared=isinstance(measurement, TensorMeasurement) and
                            measurement.difference is not None)  # fmt: skip
                continue
            if isinstance(measurement, Skipped) or (pair.baseline is None) != (pair.target is None):
                rows = _rows(bundle, pair.name, side, self._options)
                other: Side = "target" if side == "baseline" else "baseline"
                one_sided = pair.baseline is None or pair.target is None
                mine.recorded += rows
                mine.leave_out(UNPAIRED.format(side=other) if one_sided else _reason(measurement), rows)
                if one_sided:
                    mine.unpaired.append(_label(pair))
            elif isinstance(measurement, Failure):
                rows = _rows(bundle, pair.name, side, self._options)
                mine.recorded += rows
                mine.leave_out(f"{NOT_COMPARABLE} ({measurement.name})", rows)
            elif isinstance(measurement, TensorMeasurement) and measurement.difference is None:
                mine.recorded += 1
                mine.leave_out(SHAPES_DIFFER, 1)
            else:
                mine.recorded += 1
                mine.compared += 1


def _add_tokens(mine: SideAccount, tokens: TokenNumbers, side: Side, *, compared: bool) -> None:
    if side == "baseline":
        only, dropped, recorded = tokens.only_baseline, tokens.dropped_baseline, tokens.recorded_baseline
    else:
        only, dropped, recorded = tokens.only_target, tokens.dropped_target, tokens.recorded_target
    mine.recorded += recorded
    if compared:
        mine.compared += tokens.matched
    else:
        mine.leave_out(SHAPES_DIFFER, tokens.matched)
    if recorded == tokens.matched and not only and not dropped:
        return
    for reason, rows in only.items():
        mine.leave_out(reason, rows)
    again = recorded - tokens.matched - sum(only.values()) - dropped
    if dropped:
        mine.leave_out(PADDING, dropped)
    if again:
        mine.leave_out(COMPUTED_AGAIN, again)


def _reason(measurement: Measurement) -> str:
    return measurement.name if isinstance(measurement, Skipped) else NOT_COMPARABLE


def _compares_something(measurement: Measurement) -> bool:
    if isinstance(measurement, TensorMeasurement):
        return measurement.difference is None or measurement.difference.elements > 0
    return not isinstance(measurement, Skipped)


def _account_name(pair: BundlePair) -> str:
    """Name, stream and whether it was recomputed: a training step has gradients where a server has none."""
    apart = [f"{key}={value}" for key, value in pair.tags if key in ("stream", "recompute")]
    return " ".join([pair.name, *apart]) if apart else pair.name


def _label(pair: BundlePair) -> str:
    return pair.label if pair.step is None else f"{pair.label} step {pair.step}"


def _rows(bundle: Bundle, name: str, side: Side, options: Options) -> int:
    """Rows of a bundle that is not put together: per step those of the rank that has most."""
    try:
        text = bundle.dims(name, side, options)
        positions = () if text is None else parse_dims(text).token_dimensions
    except DimsError:
        positions = ()
    if len(bundle.entries) == 1:
        return _rows_of(bundle.entries[0], positions)
    found: dict[tuple[int | None, int], int] = {}
    for entry in bundle.entries:
        place = entry.step, entry.rank
        found[place] = found.get(place, 0) + _rows_of(entry, positions)
    steps: dict[int | None, int] = {}
    for (step, _), rows in found.items():
        steps[step] = max(steps.get(step, 0), rows)
    return sum(steps.values())


def _rows_of(entry: Entry, positions: tuple[int, ...]) -> int:
    try:
        shape = entry.shape if positions and entry.is_tensor else ()
    except (PairError, DimsError):  # a piece that the map cuts and cannot be cut; its finding says so
        return 1
    return count_rows(shape, positions) if len(shape) > max(positions, default=-1) else 1


def sequences_not_found(account: NameAccount) -> bool:
    """Whether each side has sequences that the other has not: the same requests, perhaps, told apart wrongly."""
    return all(
        account.sides[side].left_out.get(NO_SEQUENCE.format(side="target" if side == "baseline" else "baseline"), 0)
        for side in SIDES
    )


def say_of_accounts(accounts: Accounts, options: Options, damaged: frozenset[Side]) -> list[Said]:
    """What was left out for a reason that could hide a fault. ``damaged``: sides of which something was lost."""
    found: list[tuple[str, str]] = []
    if accounts.names and accounts.paired and not accounts.compared_anything:
        found.append(("only-empty", "all tensors that both sides have are empty, or hold only padding"))
    for side in SIDES:
        other: Side = "target" if side == "baseline" else "baseline"
        unpaired = accounts.unpaired_of_shared_names(side)
        if unpaired:
            found.append(
                (
                    "partly-one-sided",
                    f"the {other} has no counterpart of {len(unpaired)} of the tensors that the {side} recorded under "
                    f"names that both have: {_listing(unpaired)}{_hint(unpaired)}",
                )
            )
        alone = [account.name for account in accounts.names if account.lacks(other)]
        if alone and other in damaged:
            found.append(
                ("lost-with-damage", f"the {other} has no record of {_listing(alone)}, and a part of its run is lost")
            )
    parted = [account.name for account in accounts.names if sequences_not_found(account)]
    if parted:
        found.append(
            (
                "sequences-not-found",
                f"each side has sequences that the other has not ({_listing(parted)}): the requests differ, or their "
                "tokens were recorded wrongly",
            )
        )
    unused = [account.name for account in accounts.names if _recorded_and_not_compared(account)]
    if unused and accounts.compared_anything:
        found.append(("nothing-compared", f"no row was compared of {_listing(unused)}, although both sides have some"))
    return [say(name, message, options) for name, message in found]


def _hint(unpaired: Sequence[str]) -> str:
    """What to do where a side recorded something more often in a step: gradient accumulation."""
    if not all(" occurrence=" in label for label in unpaired):
        return ""
    return "; where dims name the tokens (--override-dims 'NAME:b s h'), all records of a step are joined as rows"


def _recorded_and_not_compared(account: NameAccount) -> bool:
    sides = account.sides.values()
    errors = any(
        reason.startswith(NOT_COMPARABLE) or reason == SHAPES_DIFFER for one in sides for reason in one.left_out
    )
    return not errors and all(
        one.recorded > sum(rows for reason, rows in one.left_out.items() if reason in _SKIPPED) and not one.compared
        for one in sides
    )


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more

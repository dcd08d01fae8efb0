"""Which entries of a pair take part, by which rules the pair is compared, and where it is left out: reasons as data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

from msgspec import Struct
from msgspec.structs import replace

from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair, split_steps
from comparator.match.entries import Entry
from comparator.match.keys import named_file
from comparator.options import Options, Side
from comparator.plan.by_rows import SEVERAL_STEPS_HINT, file_dims
from comparator.plan.context import SideContext
from comparator.rules import SGLANG_RULES_BY_TOKEN, Rules, joins_steps
from tensortap.dims import DimsError, parse_dims

UNKNOWN_TOKENS_HINT = (
    "record the batches as well (input_ids, positions, seq_lens, rids), so that rows are joined by their tokens, or "
    "convert both with 'python -m dumper convert DUMP RUN', which joins them in the order of the ranks"
)
REQUEST_IDS = "rids"
"""The record of request ids, which differ between any two runs."""


class LeftOut(Struct, frozen=True):
    """A record of a pair that takes no part in it, and why."""

    side: Side
    rank: int
    step: int | None
    name: str
    """``unreadable-file`` or ``empty-rank`` (``comparator.messages``)."""
    reason: str


class Selected(Struct, frozen=True):
    """A pair as it is compared: its entries that take part, and the rules that hold for it."""

    pair: BundlePair
    rules: Rules
    left_out: tuple[LeftOut, ...] = ()
    kept: bool = True
    """False: the pair is skipped, because of ``reason``."""
    reason: str = ""
    message: str = ""
    error: PairError | DimsError | None = None
    """Why the pair cannot be compared."""


class Selector(Struct, frozen=True):
    """Says what of a pair is compared, in one comparison."""

    contexts: Mapping[Side, SideContext]
    options: Options
    rules: Rules
    joined: bool
    """Whether all steps of a tensor are compared as one."""

    @classmethod
    def of(cls, contexts: Mapping[Side, SideContext], options: Options, rules: Rules) -> Selector:
        return cls(contexts, options, rules, joins_steps(options, rules))

    def select(self, pair: BundlePair) -> list[Selected]:
        """One, or one per step of a pair that joins steps which can only be compared one by one."""
        if self.rules.grouping == "tags":
            if pair.step is not None:
                return [_one_sided(Selected(pair, self.rules))]
            steps = _steps(pair, self.options, joined=self.joined, values_apart=True)
            return [_one_sided(Selected(one, self.rules)) for one in steps]
        return self._of_dumps(pair)

    def _of_dumps(self, pair: BundlePair) -> list[Selected]:
        contexts, options, rules = self.contexts, self.options, self.rules
        if pair.name == REQUEST_IDS:
            message = "request ids differ between any two runs and are not compared"
            return [Selected(pair, rules, kept=False, reason="request_ids", message=message)]
        readable, left_out = _without_unreadable(pair)
        found = Selected(readable, rules, left_out)
        if readable.baseline is None or readable.target is None:
            return [_one_sided(found)]
        by_token = options.token_aligner == "smart" or _rows_are_shared(pair, contexts, options)
        chosen = None if by_token else _as_rows_lie(found, contexts, options)
        if chosen is not None:
            return [chosen]
        pairs = _steps(readable, options, joined=self.joined, values_apart=False)
        return [_one_sided(replace(found, pair=one, rules=SGLANG_RULES_BY_TOKEN)) for one in pairs]


def _as_rows_lie(found: Selected, contexts: Mapping[Side, SideContext], options: Options) -> Selected | None:
    """A pair by SGLang's rules; None where they have no answer and ours do."""
    try:
        return _without_empty_ranks(found, contexts, options)
    except _SeveralParts as parts:
        if not parts.tokens_known:
            return replace(found, error=PairError(str(parts), hint=UNKNOWN_TOKENS_HINT, name="rows-of-unknown-tokens"))
        if not _leaves_steps_apart(found.pair, options):
            return None
        message = "several steps and several data-parallel ranks make one tensor here"
        return replace(found, error=PairError(message, hint=SEVERAL_STEPS_HINT, name="steps-not-joined"))
    except (PairError, DimsError) as error:
        return replace(found, error=error)


def _one_sided(found: Selected) -> Selected:
    """A pair that only one side has is left out."""
    pair = found.pair
    if pair.baseline is not None and pair.target is not None:
        return found
    missing = "baseline" if pair.baseline is None else "target"
    if pair.baseline is None and pair.target is None:
        message, missing = "no file of it can be read", "baseline"
    else:
        message = f"only the {'target' if pair.baseline is None else 'baseline'} has it"
    if found.left_out:
        message = "no file of it can be read"
    return replace(found, kept=False, reason=f"{missing}_load_failed", message=message)


def _steps(pair: BundlePair, options: Options, *, joined: bool, values_apart: bool) -> list[BundlePair]:
    if pair.step is None and not (joined and _has_token_dimension(pair, options, values_apart)):
        return split_steps(pair)
    return [pair]


def _has_token_dimension(pair: BundlePair, options: Options, values_apart: bool) -> bool:
    sides: tuple[tuple[Side, Bundle | None], ...] = (("baseline", pair.baseline), ("target", pair.target))
    for side, bundle in sides:
        if bundle is None:
            continue
        if not bundle.all_whole:
            return not values_apart
        dims = bundle.dims(pair.name, side, options)
        try:
            if dims is not None and not parse_dims(dims).token_dimensions:
                return not values_apart
        except DimsError:
            return True
    return True


class _SeveralParts(Exception):  # a way out, not an error
    """More than one data-parallel rank holds rows: SGLang's rules have no answer, ours join them by their tokens."""

    def __init__(self, side: Side, axis: str, ranks: Collection[int], *, tokens_known: bool) -> None:
        super().__init__(
            f"{len(ranks)} {axis} ranks of the {side} hold rows ({', '.join(map(str, sorted(ranks)))}), and nothing "
            "that was recorded says of which tokens"
        )
        self.tokens_known = tokens_known


def _without_unreadable(pair: BundlePair) -> tuple[BundlePair, tuple[LeftOut, ...]]:
    if _is_readable(pair.baseline) and _is_readable(pair.target):
        return pair, ()
    left_out: list[LeftOut] = []

    def readable(side: Side, bundle: Bundle | None) -> Bundle | None:
        if bundle is None:
            return None
        for entry in bundle.entries:
            if entry.record.error is not None:
                left_out.append(LeftOut(side, entry.rank, entry.step, "unreadable-file", entry.record.error))
        entries = bundle.entries.where([entry.record.error is None for entry in bundle.entries])
        history = bundle.history
        if left_out:
            history = history.where([entry.record.error is None for entry in history])
        return bundle.of(entries, history) if len(entries) else None

    found = replace(pair, baseline=readable("baseline", pair.baseline), target=readable("target", pair.target))
    return found, tuple(left_out)


def _is_readable(bundle: Bundle | None) -> bool:
    if bundle is None or bundle.entries.places[0].all_readable:  # as in most runs
        return True
    return all(entry.record.error is None for entry in bundle.entries)


def _without_empty_ranks(found: Selected, contexts: Mapping[Side, SideContext], options: Options) -> Selected:
    """Keep the files of the one data-parallel rank that holds something.

    Raises _SeveralParts when several do, PairError when none does.
    """
    left_out = list(found.left_out)
    pair = found.pair

    def filled(side: Side, bundle: Bundle) -> Bundle:
        if len(bundle.entries) == 1 and _holds_rows(bundle.like):
            return bundle  # whichever rank it is of; to plan it says what is wrong with its dims
        dims = file_dims(bundle, pair.name, contexts[side], options)
        axis = (dims.data_parallel_axis if dims else None) or "dp"
        first = named_file(bundle.entries.first).parallel.get(axis)
        if first is None or first[1] <= 1 or not any(entry.is_tensor for entry in bundle.entries):
            return bundle
        places = [named_file(entry).parallel.get(axis) for entry in bundle.entries]
        ranks = [0 if place is None else place[0] for place in places]
        holding = {rank for rank, entry in zip(ranks, bundle.entries, strict=True) if _holds_rows(entry)}
        if len(holding) > 1:
            layouts = (contexts[side].run.layout(one.step, one.rank) for one in bundle.entries if one.step is not None)
            raise _SeveralParts(side, axis, holding, tokens_known=all(layout is not None for layout in layouts))
        if not holding:
            raise PairError(f"every {axis} rank of the {side} holds an empty tensor", name="empty-rank")
        kept = bundle.entries.where([rank in holding for rank in ranks])
        left_out.extend(
            LeftOut(side, entry.rank, entry.step, "empty-rank", f"{axis} rank {rank} holds an empty tensor")
            for rank, entry in zip(ranks, bundle.entries, strict=True)
            if rank not in holding
        )
        return bundle.of(kept)

    assert pair.baseline is not None
    assert pair.target is not None
    baseline, target = filled("baseline", pair.baseline), filled("target", pair.target)
    if baseline is pair.baseline and target is pair.target:
        return found
    return replace(found, pair=replace(pair, baseline=baseline, target=target), left_out=tuple(left_out))


def _holds_rows(entry: Entry) -> bool:
    return entry.is_tensor and prod(entry.shape) > 0


def _leaves_steps_apart(pair: BundlePair, options: Options) -> bool:
    """Whether several steps were grouped together, and no token aligner joins them."""
    bundles = [bundle for bundle in (pair.baseline, pair.target) if bundle is not None]
    return options.token_aligner == "per_step" and any(len(bundle.steps) > 1 for bundle in bundles)


def _rows_are_shared(pair: BundlePair, contexts: Mapping[Side, SideContext], options: Options) -> bool:
    """Whether data-parallel attention ranks share the rows of a pass, so that some of them are no tokens.

    SGLang's comparator takes such rows for tokens; the token layouts tell ours which they are.
    """
    if pair.baseline is None or pair.target is None or "rank" not in options.grouping_skip_keys:
        return False
    sides: tuple[tuple[Side, Bundle], ...] = (("baseline", pair.baseline), ("target", pair.target))
    shared = [_holds_shared_rows(bundle, contexts[side]) for side, bundle in sides]
    if not any(shared) or _leaves_steps_apart(pair, options):
        return False
    for (side, bundle), found in zip(sides, shared, strict=True):
        if bundle.dims(pair.name, side, options) is None or not bundle.all_tensors:
            return False
        if found:
            return True
    return False


def _holds_shared_rows(bundle: Bundle, context: SideContext) -> bool:
    return context.shares_rows and any(context.share_rows(entry.step, entry.rank) for entry in bundle.entries)

"""What each tap gets from its inputs: inherited error per row, ties before it, factors that its inputs have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from msgspec import Struct

from comparator.diagnosis.calibration import Calibration
from comparator.diagnosis.floors import Floor, Operation, floor_for
from comparator.diagnosis.kernel import TINY, median
from comparator.diagnosis.measures import NOTHING, Estimate
from comparator.diagnosis.precision import coarsest
from comparator.diagnosis.routing import STANDS_OUT, Choices, Flips, count_flips, find_top_k
from comparator.diagnosis.strengths import Context, Test
from comparator.diagnosis.tap_graph import TapGraph, TapNode
from comparator.diagnosis.tap_profile import TapProfile
from comparator.diagnosis.tap_rows import Float, Mask, RowLabels, TapKey, has_whole_prefix, join_rows
from tensortap.distinct import distinct

_LINEAR: frozenset[Operation] = frozenset({"linear", "combine", "logits"})
"""A factor of the input is one of the output."""
_NORMALISED: frozenset[Operation] = frozenset({"attention", "recurrence", "mlp", "moe", "router", "norm"})
"""Behind a norm a factor of the input is gone, but for that of massive channels."""
INHERITS_NOTHING: frozenset[Operation] = frozenset({"sum", "source", "embedding", "encoder", "unseen"})
"""Inputs have no error (nothing comes before), or their difference is taken off (a sum)."""
CAUSAL: frozenset[Operation] = frozenset({"attention", "recurrence", "unknown"})
"""A row may depend on all rows before it in its sequence."""
_ROUTED: frozenset[Operation] = frozenset({"moe", "combine"})
_COMPOUND: frozenset[Operation] = frozenset({"attention", "recurrence", "mlp", "moe", "router", "unknown"})
"""Stores values on the way, which have the precision of the model also where the result is wider."""
_MOST_UNMEASURED = 8
"""Taps in a row that were not measured, beyond which nothing is inherited."""


class Way(Struct, frozen=True):
    """What lies between a tap and an input that was measured: operations that were not."""

    gain: float = 1.0
    floor: float = 0.0
    mixes: bool = False
    """A row may depend on rows before it."""
    steps: int = 0

    def behind(self, node: TapNode, tap: TapProfile) -> Way:
        """The way to ``tap`` that begins one operation earlier. What is added to a sum may be nearly all of it."""
        operation = node.operation
        dtypes = tap.baseline_dtype, tap.target_dtype
        bound = floor_for(operation, *dtypes, quantisation=node.quantisation, unseen=node.unseen)
        return Way(
            self.gain * max(bound.gain, 1.0),
            float(np.hypot(self.gain * bound.floor, self.floor)),
            self.mixes or operation in CAUSAL,
            self.steps + 1,
        )


class View(Struct, frozen=True, eq=False):
    """A tap as its inputs explain it."""

    context: Context
    inherited: Float
    """Error that the inputs explain, gain included. Shape ``(rows,)``."""
    after_flip: bool
    """Rows with another choice of experts, there or before, have errors that the others do not have."""


class Inheritance:
    """Looks up inputs of taps; made once per pair of runs."""

    def __init__(
        self,
        profiles: Mapping[TapKey, TapProfile],
        graph: TapGraph,
        calibration: Calibration | None,
        *,
        other_engine: bool = False,
    ) -> None:
        self._other_engine = other_engine
        self._profiles = profiles
        self._model = graph.model
        self._nodes = {node.key: node for node in graph.nodes}
        self._order = {node.key: at for at, node in enumerate(graph.nodes)}
        self._calibration = calibration
        self._taps = sum(not profile.identical for profile in profiles.values())
        self.top_k = self._find_top_k()
        self._ties = self._find_ties()
        self.without_routing: list[TapKey] = []

    def _explain(self, profile: TapProfile) -> tuple[Float, Float, Float, Float]:
        """Per row the inherited error, gain included, the floor, and the ratios of the error to both.

        The second ratio is for single rows: an attention may look at one token alone, so that it may inherit the
        largest error before it.
        """
        node = self._nodes[profile.key]
        inherited, largest = self._inherited(profile, node)
        bound = self._bound(profile, node.unseen)
        own = bound.floor
        if self._calibration is not None:
            own = self._calibration.raised(profile.key, own)
        floor = np.hypot(own, profile.extra_floor)
        explained = np.maximum(np.hypot(bound.gain * inherited, floor), TINY)
        most = np.maximum(np.hypot(bound.gain * largest, floor), TINY)
        return bound.gain * inherited, floor, profile.added / explained, profile.added / most

    def _bound(self, profile: TapProfile, unseen: int) -> Floor:
        return floor_for(
            profile.operation,
            *self._precisions(profile),
            ranks=profile.ranks,
            length=profile.reduction_length,
            quantisation=self._nodes[profile.key].quantisation,
            unseen=unseen,
        )

    def _precisions(self, profile: TapProfile) -> tuple[str, str]:
        """Of what the operation stores on its way, of baseline and target."""
        baseline, target = profile.baseline_dtype, profile.target_dtype
        node = self._nodes[profile.key]
        if node.operation != "embedding" and (node.assumed or not node.inputs or node.branch is not None):
            # What comes before was not recorded, and need not be as exact as what comes of it.
            first, second = self._model.dtypes
            baseline, target = coarsest(baseline, first or baseline), coarsest(target, second or target)
        if profile.operation in _COMPOUND:
            for key in node.inputs:
                source = self._profiles.get(key)
                if source is not None:
                    baseline, target = coarsest(baseline, source.baseline_dtype), coarsest(target, source.target_dtype)
        return baseline, target

    def view(self, profile: TapProfile) -> View:
        node = self._nodes[profile.key]
        inherited, floor, ratio, row_ratio = self._explain(profile)
        own_ties = self._own_ties(profile)
        before = self._ties_before(profile)
        compared = np.ones(profile.rows, np.bool_) if own_ties is None else ~own_ties
        if profile.operation in CAUSAL and profile.labels.known and self._is_behind_experts(profile):
            # A token that was not compared may have had other experts, and nothing tells.
            compared &= has_whole_prefix(profile.labels)
        unknown = own_ties is None
        if unknown and (ratio > STANDS_OUT).any():
            self.without_routing.append(profile.key)
        main = self._main_input(node)
        context = Context(
            ratio=ratio,
            row_ratio=row_ratio,
            floor=floor,
            own_floor=self._bound(profile, 0).floor if node.unseen else median(floor),
            compared=compared,
            steady=~before,
            inherited_scale=self._inherited_scale(profile, main),
            outlier_scale=self._outlier_scale(profile, main),
            taps=max(self._taps, 1),
            without_routing=unknown,
            routed_unseen=node.routed_unseen and set(self._precisions(profile)) != {"float32"},
            other_engine=self._other_engine,
            choice=self._choice(profile) if profile.operation in _ROUTED else None,
        )
        affected = ~compared | before
        return View(context, inherited, _stands_out(profile.error, affected))

    def routing_tests(self, profile: TapProfile) -> tuple[Test, ...]:
        """Whether margins explain the flips of a layer; judged at the router."""
        if profile.operation != "router":
            return ()
        found = self._choice(profile)
        if found is None:
            return ()
        flips = count_flips(profile.key.layer, found)
        limit = 3 * flips.expected + 3 * math.sqrt(flips.expected) + 3
        where = f"{flips.flipped} flips of {flips.rows}"
        return (
            Test("flip margin", flips.largest_margin / 4.0, flips.largest_margin, 4.0, where),
            Test("flips", flips.flipped / limit, flips.flipped, limit, where),
        )

    def flips(self) -> tuple[Flips, ...]:
        """Per layer, from the router's tap where it was recorded."""
        found: dict[int | None, Flips] = {}
        for key in self._order:
            profile = self._profiles.get(key)
            choice = None if profile is None else self._choice(profile)
            if choice is not None and key.layer not in found:
                found[key.layer] = count_flips(key.layer, choice)
        return tuple(found.values())

    # Error of the inputs

    def _inherited(self, profile: TapProfile, node: TapNode) -> tuple[Float, Float]:
        """Per row the usual and the largest error that the inputs may hand on, before the gain."""
        if profile.inherited is not None:
            return profile.inherited, profile.inherited
        usual, largest = np.zeros(profile.rows), np.zeros(profile.rows)
        if profile.operation in INHERITS_NOTHING:
            return usual, largest
        for source, way in self._sources(profile, node):
            if source.identical and not way.floor:
                continue
            if (profile.operation in CAUSAL or way.mixes) and profile.labels.known and source.labels.known:
                # Error of gradients comes from the tokens behind a row as well as from those before it.
                over = _over_all if profile.key.is_gradient else _over_prefix
                mean, most = over(source, profile.labels)
            else:
                mean = most = _of_rows(source, profile.labels)
            mean, most = (np.hypot(way.gain * one, way.floor) for one in (mean, most))
            usual, largest = np.maximum(usual, mean), np.maximum(largest, most)
        return usual, largest

    def _sources(self, tap: TapProfile, node: TapNode, way: Way | None = None) -> Iterator[tuple[TapProfile, Way]]:
        """The inputs that were measured. One that was not stands for its own inputs, as what computes it hands their
        error on: else what it is computed from would seem to be the work of the tap behind it."""
        way = way or Way()
        for key in node.inputs:
            source, unmeasured = self._profiles.get(key), self._nodes.get(key)
            if source is not None:
                yield source, way
            elif unmeasured is not None and way.steps < _MOST_UNMEASURED:
                yield from self._sources(tap, unmeasured, way.behind(unmeasured, tap))

    def _main_input(self, node: TapNode) -> TapProfile | None:
        found = [self._profiles[key] for key in node.inputs if key in self._profiles]
        return found[0] if found else None

    def _inherited_scale(self, profile: TapProfile, main: TapProfile | None) -> Estimate:
        return main.scale if main is not None and profile.operation in _LINEAR else NOTHING

    def _outlier_scale(self, profile: TapProfile, main: TapProfile | None) -> float:
        if main is None or profile.operation not in _NORMALISED:
            return 0.0
        return abs(main.raw_scale.value - main.scale.value)

    # Ties

    def _is_behind_experts(self, profile: TapProfile) -> bool:
        place = self._order[profile.key]
        return any(
            other.operation in _ROUTED and not other.identical and self._order.get(key, place) < place
            for key, other in self._profiles.items()
        )

    def _find_top_k(self) -> int | None:
        layers = []
        for key in self._order:
            profile = self._profiles.get(key)
            if profile is None or profile.identical or profile.operation not in _ROUTED or not profile.choices:
                continue
            if len(profile.choices) == 1:
                return profile.choices[0].top_k
            layers.append((self._explain(profile)[2] > STANDS_OUT, profile.choices))
        return find_top_k(layers)

    def _choice(self, profile: TapProfile) -> Choices | None:
        if len(profile.choices) == 1:
            return profile.choices[0]
        return next((one for one in profile.choices if one.top_k == self.top_k), None)

    def _own_ties(self, profile: TapProfile) -> Mask | None:
        """Rows whose experts may be others; None when nothing tells."""
        if self._nodes[profile.key].routed_unseen:
            return None
        if profile.operation not in _ROUTED:
            return np.zeros(profile.rows, np.bool_)
        if not profile.choices:
            return None
        found = self._choice(profile)
        return np.zeros(profile.rows, np.bool_) if found is None else found.tied

    def _find_ties(self) -> tuple[tuple[int, RowLabels, Mask], ...]:
        found = []
        for key, at in self._order.items():
            profile = self._profiles.get(key)
            choice = None if profile is None or profile.operation not in _ROUTED else self._choice(profile)
            if profile is not None and choice is not None and choice.tied.any():
                found.append((at, profile.labels, choice.tied))
        return tuple(found)

    def _ties_before(self, profile: TapProfile) -> Mask:
        """Rows with a tie in an earlier layer at their own or an earlier position of their sequence."""
        found = np.zeros(profile.rows, np.bool_)
        for at, labels, tied in self._ties:
            if at >= self._order[profile.key]:
                break
            if not labels.known or not profile.labels.known:
                here, there = join_rows(profile.labels, labels)
                found[here] |= tied[there]
                continue
            found |= ~has_whole_prefix(profile.labels)
            for sequence in distinct(labels.sequence[tied]):
                first = labels.position[tied & (labels.sequence == sequence)].min()
                found |= (profile.labels.sequence == sequence) & (profile.labels.position >= first)
        return found


def _stands_out(error: Float, affected: Mask) -> bool:
    """Whether rows behind a tie have an error that the others do not have."""
    if not affected.any():
        return False
    return bool(affected.all() or error[affected].max() > 3 * median(error[~affected]))


def _of_rows(source: TapProfile, labels: RowLabels) -> Float:
    """The source's error in the rows of ``labels``; rows it does not have get its median."""
    found = np.full(len(labels), median(source.error) if source.rows else 0.0)
    here, there = join_rows(labels, source.labels)
    found[here] = source.error[there]
    return found


def _over_all(source: TapProfile, labels: RowLabels) -> tuple[Float, Float]:
    """Rms and largest error of the source over all of its rows, for each row."""
    rms = float(np.sqrt(np.mean(source.error**2))) if source.rows else 0.0
    return np.full(len(labels), rms), np.full(len(labels), float(source.error.max(initial=0.0)))


def _over_prefix(source: TapProfile, labels: RowLabels) -> tuple[Float, Float]:
    """Rms and largest error of the source over all rows of the same sequence up to each row.

    A row whose earlier tokens were not all compared (a cached prefix) may inherit the error of any row.
    """
    order = np.lexsort((source.labels.position, source.labels.sequence))
    sequence, errors = source.labels.sequence[order], source.error[order]
    mean, most = np.zeros(len(order)), np.zeros(len(order))
    starts = np.searchsorted(sequence, distinct(sequence)).tolist()
    for start, stop in zip(starts, [*starts, len(order)][1:], strict=True):
        rows = slice(start, stop)
        mean[order[rows]] = np.sqrt(np.cumsum(errors[rows] ** 2) / np.arange(1, stop - start + 1))
        most[order[rows]] = np.maximum.accumulate(errors[rows])
    overall = float(np.sqrt(np.mean(errors**2))) if len(order) else 0.0
    partly = ~has_whole_prefix(source.labels)
    mean[partly] = np.maximum(mean[partly], overall)
    most[partly] = errors.max(initial=0.0)
    usual = np.full(len(labels), overall)
    largest = np.full(len(labels), float(errors.max(initial=0.0)))
    here, there = join_rows(labels, source.labels)
    usual[here], largest[here] = mean[there], most[there]
    return usual, largest

"""Measure a family for the analysis: from its aligned rows, and those of the taps that it sums up, to numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.diagnosis import Selection, SideRows, TapKey, TapProfile, TapRows, label_rows, profile
from comparator.diagnosis.floors import Operation
from comparator.diagnosis.precision import coarsest, precision_of
from comparator.match.bundles import Key
from comparator.measure.family import FamilyRows
from comparator.measure.kernel.sums import Array
from comparator.measure.units import Families
from comparator.verdict.model_facts import BIAS
from comparator.verdict.taps import Taps
from comparator.verdict.training import Drift, drifts_of, is_gradient, is_parameter
from tensortap.dims import parse_dims

CHOOSES = frozenset({"router", "moe", "combine", "logits"})
"""Operations whose values say which experts or tokens are chosen."""


class FamilyProfile(Struct, frozen=True, eq=False):
    """The profile of a family, and which forward pass computed each of its rows."""

    profile: TapProfile
    steps: npt.NDArray[np.int64]
    """Shape ``(rows,)``: the target's step, -1 outside any."""
    split_over: tuple[str, ...] = ()
    """Axes over whose ranks the target's channels are split into equal, contiguous pieces, the outermost first."""
    drifts: Mapping[int, Drift] = {}
    """Of weights that were trained: how far apart they are in each step but the first."""


class Profiler(Struct, frozen=True):
    """Makes the profile of a family of floating-point tensors; None for all else."""

    taps: Taps

    def __call__(self, found: FamilyRows, families: Families) -> FamilyProfile | None:
        key = self.taps.keys.get(found.family)
        node = None if key is None else self.taps.graph.node(key)
        if key is None or node is None or not (is_analysed(found.baseline) and is_analysed(found.target)):
            return None
        drifts = (
            drifts_of(found, self.taps.coarsest) if self.taps.trained is not None and is_parameter(found.family) else {}
        )
        found = self._judged_rows(found)
        operands = [self._rows_of(other, families) for other in node.operands]
        router = None if node.router is None else self._rows_of(node.router, families)
        rows = TapRows(
            key,
            _side_rows(found),
            *self._precisions(found, node.operation),
            operands=tuple(operand for operand in operands if operand is not None)
            if all(operand is not None for operand in operands)
            else (),
            router=router,
            top_k=self.taps.facts.top_k,
            head_size=self.taps.facts.head_size,
            selection=self._selection(key, families),
            shards=shards_of(found, self.taps.sizes),
            ranks=self.taps.ranks,
            look=found.look,
            encoded=self._encoded(found),
        )
        return FamilyProfile(profile(rows, node), found.step, axes_of_channels(found.target_dims), drifts)

    def asks_for(self, family: Key) -> bool:
        """Whether other taps are measured against the values of this family."""
        key = self.taps.keys.get(family)
        return key is not None and (key in self.taps.graph.asked_for or key.name == BIAS)

    def needs_values(self, family: Key) -> bool:
        """Whether the values themselves matter: those that experts or tokens are chosen by, and sums."""
        key = self.taps.keys.get(family)
        node = None if key is None else self.taps.graph.node(key)
        return node is not None and (
            node.operation in CHOOSES or node.router is not None or bool(node.operands) or node.branch is not None
        )

    def _selection(self, key: TapKey, families: Families) -> Selection | None:
        """How the experts of the tap's layer are chosen, with the recorded biases."""
        selection = self.taps.facts.selection
        found = next((one for one in self.taps.families if one.name == BIAS and one.layer == key.layer), None)
        if selection is None and found is not None:
            # A bias takes part, and no header says how: nothing tells the choice.
            return Selection("sigmoid", biased=True)
        if selection is None or not selection.biased:
            return selection
        rows = None if found is None else self._rows_of(found, families)
        if rows is None or not len(rows.baseline):
            return selection
        baseline, target = rows.single()
        return replace(selection, baseline_bias=baseline[0], target_bias=target[0])

    def _precisions(self, found: FamilyRows, operation: Operation) -> tuple[str, str]:
        if not is_gradient(found.family):
            return _precisions(found, operation)
        # Those of several ranks or micro-batches are added up as float32.
        own = precision_of(found.baseline), precision_of(found.target)
        first, second = (coarsest(one, side) for one, side in zip(own, self.taps.coarsest, strict=True))
        return first, second

    def _judged_rows(self, found: FamilyRows) -> FamilyRows:
        """The rows that are of the same text, and were computed before weights were updated."""
        masks = [mask for mask in (self._same_text(found), self._same_weights(found)) if mask is not None]
        return found.take(np.logical_and.reduce(masks)) if masks else found

    def _same_weights(self, found: FamilyRows) -> npt.NDArray[np.bool_] | None:
        """Rows before the first update of the weights, of weights themselves none; None for all."""
        if self.taps.trained is None:
            return None
        kept = np.asarray(found.step <= self.taps.trained, np.bool_)
        if is_parameter(found.family):
            kept[:] = False
        return None if kept.all() else kept

    def _encoded(self, found: FamilyRows) -> npt.NDArray[np.bool_] | None:
        """Rows that come out of an encoder of images or sound; None for none."""
        if not self.taps.encoded or found.sequence is None or found.position is None:
            return None
        rows = np.zeros(len(found), np.bool_)
        for sequence, positions in self.taps.encoded.items():
            mine = np.flatnonzero((found.sequence == sequence) & (found.position < len(positions)))
            rows[mine] = positions[found.position[mine]]
        return rows if rows.any() else None

    def _same_text(self, found: FamilyRows) -> npt.NDArray[np.bool_] | None:
        """Rows before the texts part; None for all."""
        if found.sequence is None or found.position is None or not self.taps.partings:
            return None
        kept = np.ones(len(found), np.bool_)
        for parting in self.taps.partings:
            kept &= (found.sequence != parting.sequence) | (found.position < parting.position)
        return None if kept.all() else kept

    def _rows_of(self, key: TapKey, families: Families) -> SideRows | None:
        family = self.taps.families.get(key)
        found = None if family is None else families.rows(family)
        if found is None or not (is_analysed(found.baseline) and is_analysed(found.target)):
            return None
        weights = self._same_weights(found)
        return _side_rows(found if weights is None else found.take(weights))


def shards_of(found: FamilyRows, sizes: Sequence[Mapping[str, int]]) -> tuple[int, ...]:
    """Numbers of equal, contiguous pieces of the channels that ranks hold, of each side where there are several."""
    counts = set()
    for text, axes in zip((found.baseline_dims, found.target_dims), sizes, strict=True):
        counts.add(math.prod(axes.get(axis, 1) for axis in axes_of_channels(text)))
    return tuple(sorted(count for count in counts if count > 1))


@functools.lru_cache(256)
def axes_of_channels(text: str | None) -> tuple[str, ...]:
    """The axes over which dims split the channels into equal, contiguous pieces, the outermost first; empty where the
    pieces lie otherwise, or there are none."""
    dims = None if text is None else parse_dims(text)
    if dims is None:
        return ()
    channels = [one for at, one in enumerate(dims.dimensions) if at not in dims.token_dimensions]
    outermost = next((one for one in channels if not one.squeezed), None)
    if outermost is None or any(one.modifiers for one in channels if one is not outermost):
        return ()
    if any(one.partial or one.ordering != "natural" for one in outermost.modifiers):
        return ()
    return tuple(one.axis for one in outermost.modifiers)


def is_analysed(array: Array) -> bool:
    """Whether an array holds real floating-point numbers that float32 can hold, those of ml_dtypes included."""
    name = array.dtype.name
    return name in ("float16", "float32") or name.startswith(("bfloat16", "float8", "float6", "float4"))


def _precisions(found: FamilyRows, operation: Operation) -> tuple[str, str]:
    """The precision of both sides. Embeddings are not computed, and their float32 table may have been bfloat16 once.
    Where one side alone is less exact than its dtype, that is a difference of both and explains none."""
    own = found.baseline.dtype.name, found.target.dtype.name
    if operation == "embedding":
        return own
    real = precision_of(found.baseline), precision_of(found.target)
    return own if "float32" in real else real


def _side_rows(found: FamilyRows) -> SideRows:
    labels = label_rows(len(found), found.sequence, found.position, found.step)
    return SideRows(found.baseline, found.target, labels)

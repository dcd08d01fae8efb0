"""From the profiles of all taps to the verdict: do two recordings agree, and where was error introduced?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from comparator.diagnosis.calibration import Calibration
from comparator.diagnosis.inheritance import CAUSAL, INHERITS_NOTHING, Inheritance
from comparator.diagnosis.kernel import median
from comparator.diagnosis.limits import LIMITS
from comparator.diagnosis.routing import EXPLAINED_MARGIN, Flips
from comparator.diagnosis.strengths import Test, run_tests
from comparator.diagnosis.tap_graph import TapGraph
from comparator.diagnosis.tap_profile import FirstDifference, TapProfile
from comparator.diagnosis.tap_rows import Extent, TapKey, extent_of
from comparator.diagnosis.tokens import ChosenTokens, PartedText, Parting, explain, summarise

Judged = Literal["within-rounding", "introduced-here", "inherited-from", "after-a-routing-flip", "not-judged"]
Verdict = Literal["agree", "differ", "undecided"]


NO_ROWS = "no rows in common"
"""Why a tap is not judged that was measured."""
FEWEST_OF_ROWS = 0.1
"""Share of rows below which rows that differ may have been absent in earlier layers by chance."""


class Options(Struct, frozen=True):
    """What may be chosen about the analysis."""

    calibration: Calibration | None = None
    """Floors measured on runs that agree; they only raise the shipped ones."""
    reference_factor: float = 1.5
    """How many times the baseline's error against the reference a target's may be."""
    ignored: frozenset[str] = frozenset()
    """Names that are judged by thresholds of their own (``--diff-threshold``): measured, but never a place."""
    other_engine: bool = False
    """The runs are of different engines, whose kernels may not round in the same way."""
    partings: tuple[Parting, ...] = ()
    """Where sampled tokens part."""


class Judgement(Struct, frozen=True):
    """What is said of one tap. Errors are relative L2 errors, medians over the rows that were compared."""

    key: TapKey
    judged: Judged
    source: TapKey | None = None
    """Where an inherited error was introduced."""
    error: float = 0.0
    inherited: float = 0.0
    """What the operation makes of the error of its inputs."""
    introduced: float = 0.0
    """What is left of the error without the inherited one."""
    floor: float = 0.0
    tests: tuple[Test, ...] = ()
    """Strongest first."""
    rows: int = 0
    left_out: int = 0
    """Rows that were not compared, because their experts are another choice."""
    reason: str = ""
    """Why it was not judged."""

    @property
    def multiple(self) -> float:
        """The introduced error as a multiple of the floor."""
        return self.introduced / self.floor if self.floor else 0.0

    @property
    def strength(self) -> float:
        return self.tests[0].strength if self.tests else 0.0


class Diagnosis(Struct, frozen=True, dict=True):
    """The result of the analysis, as data. ``comparator.diagnosis.words.describe`` says it in words."""

    verdict: Verdict
    place: TapKey | None = None
    """The earliest tap, in the order of execution, that introduces error beyond rounding."""
    judgements: tuple[Judgement, ...] = ()
    flips: tuple[Flips, ...] = ()
    """Per layer with a known choice of experts."""
    top_k: int | None = None
    tokens: ChosenTokens | None = None
    """What the logits choose, where they were recorded."""
    texts: tuple[PartedText, ...] = ()
    """Sequences whose sampled tokens part, and why."""
    first_difference: tuple[TapKey, FirstDifference] | None = None
    """The first element that is not the same bit for bit."""
    also: tuple[TapKey, ...] = ()
    """Later taps of the place's name that introduce error as well."""
    extent: Extent | None = None
    """Which rows of the place are beyond rounding; None where no single row is."""
    trained: tuple[int, str] | None = None
    """The step up to which this holds, and the criterion for those behind it, whose weights were updated; None where
    nothing was trained."""
    undecided: tuple[str, ...] = ()
    """What cannot be decided from this pair, and what would decide it."""
    notes: tuple[str, ...] = ()
    other_engine: bool = False
    """The sides are of different frameworks, such as a trainer and a server."""

    @property
    def nearest(self) -> float:
        """The strongest test of all taps; from 1 on the runs differ."""
        return max((one.strength for one in self.judgements if one.judged != "not-judged"), default=0.0)

    @cached_property
    def _by_key(self) -> Mapping[TapKey, Judgement]:
        return {one.key: one for one in reversed(self.judgements)}

    def judgement(self, key: TapKey) -> Judgement | None:
        return self._by_key.get(key)


def diagnose(profiles: Sequence[TapProfile], graph: TapGraph, options: Options | None = None) -> Diagnosis:
    """Judge a pair of recordings from the profiles of its taps.

    Taps of the graph without a profile (another level, one side only) are not judged and inherit nothing; taps without
    a node are not judged. Nothing is raised for what the profiles hold.
    """
    options = options or Options()
    found = {profile.key: profile for profile in profiles}
    inheritance = Inheritance(found, graph, options.calibration, other_engine=options.other_engine)
    judgements: list[Judgement] = []
    for node in graph.nodes:
        profile = found.get(node.key)
        if profile is None:
            judgements.append(Judgement(node.key, "not-judged", reason="not measured on both sides"))
        elif profile.rows == 0 or profile.channel_count == 0:
            judgements.append(Judgement(node.key, "not-judged", reason=NO_ROWS))
        else:
            judgements.append(_judge(profile, inheritance, options))
    judgements = _with_bits(judgements, found, graph)
    logits = next((profile for profile in profiles if profile.tokens is not None and profile.rows), None)
    texts = explain(
        options.partings, None if logits is None else logits.tokens, None if logits is None else logits.labels
    )
    known = {node.key for node in graph.nodes}
    judgements.extend(
        Judgement(profile.key, "not-judged", rows=profile.rows, reason="not in the graph of taps")
        for profile in profiles
        if profile.key not in known
    )
    place = next((one for one in judgements if one.judged == "introduced-here"), None)
    also: tuple[TapKey, ...] = ()
    if place is not None:
        later = judgements[judgements.index(place) + 1 :]
        also = tuple(one.key for one in later if one.judged == "introduced-here" and one.key.name == place.key.name)
        judgements = _with_sources(judgements, place, graph)
    judged = [one for one in judgements if one.judged != "not-judged"]
    verdict: Verdict = "differ" if place is not None else ("agree" if judged else "undecided")
    return Diagnosis(
        verdict=verdict,
        place=None if place is None else place.key,
        judgements=tuple(judgements),
        flips=inheritance.flips(),
        top_k=inheritance.top_k,
        tokens=None if logits is None or logits.tokens is None else summarise(logits.tokens, logits.labels),
        texts=texts,
        first_difference=_first_difference(judgements, found),
        also=also,
        extent=None if place is None else _extent(found[place.key], inheritance),
        undecided=(*_undecided(judgements, found, inheritance), *_undecided_texts(texts, recorded=logits is not None)),
        notes=(*graph.notes, *_notes(profiles)),
        other_engine=options.other_engine,
    )


def _extent(profile: TapProfile, inheritance: Inheritance) -> Extent | None:
    context = inheritance.view(profile).context
    limit = LIMITS[profile.operation].growth
    return extent_of(profile.labels, np.asarray(context.row_ratio > limit, np.bool_), context.compared)


def _judge(profile: TapProfile, inheritance: Inheritance, options: Options) -> Judgement:
    view = inheritance.view(profile)
    context = view.context
    tests: tuple[Test, ...] = ()
    if not profile.identical:
        found = _tests_of_parts(profile, inheritance) if profile.parts else run_tests(profile, context)
        tests = (*found, *inheritance.routing_tests(profile), *_token_tests(profile))
    tests = tuple(sorted(tests, key=lambda test: -test.strength))
    compared = context.compared if context.compared.any() else np.ones(profile.rows, np.bool_)
    inherited_rows = view.inherited
    if profile.operation in INHERITS_NOTHING:
        inherited_rows = np.sqrt(np.maximum(profile.error**2 - profile.added**2, 0.0))
    error = median(profile.error[compared])
    inherited = median(inherited_rows[compared])
    introduced = np.sqrt(np.maximum(profile.added[compared] ** 2 - view.inherited[compared] ** 2, 0.0))
    judged: Judged = "within-rounding"
    if tests and tests[0].strength >= 1 and profile.key.name not in options.ignored:
        judged = "introduced-here"
    elif view.after_flip:
        judged = "after-a-routing-flip"
    return Judgement(
        profile.key,
        judged,
        error=error,
        inherited=inherited,
        introduced=median(introduced),
        floor=median(context.floor[compared]),
        tests=tests,
        rows=profile.rows,
        left_out=int((~context.compared).sum()),
    )


def _tests_of_parts(profile: TapProfile, inheritance: Inheritance) -> Iterator[Test]:
    """Of a tap at which the rows of an encoder come in."""
    encoded = profile.parts[-1]
    for part in profile.parts:
        for test in run_tests(part, inheritance.view(part).context):
            yield replace(test, encoded=True) if part is encoded else test


def _token_tests(profile: TapProfile) -> tuple[Test, ...]:
    """Whether the logits' error explains the choices that flipped."""
    if profile.tokens is None or not profile.tokens.flipped.any():
        return ()
    ratio = profile.tokens.ratio
    at = int(np.argmax(ratio))
    strength = float(ratio[at]) / EXPLAINED_MARGIN
    return (Test("token margin", strength, float(ratio[at]), EXPLAINED_MARGIN, profile.labels.describe(at)),)


def _with_bits(judgements: list[Judgement], profiles: Mapping[TapKey, TapProfile], graph: TapGraph) -> list[Judgement]:
    """Judge the first tap that is not bit-identical by earlier layers, where the same tap was.

    Equal kernels give equal bits in every layer that the same code computes; a hybrid has layers of several kinds. A
    difference that is rare (few elements, few rows) may have been absent earlier by chance: one element that rounds
    otherwise inside an MLP changes all of its row. And a mixture of experts gives each expert another number of rows;
    where those were not recorded nothing is said.
    An attention depends on all tokens before: only rows count whose earlier tokens were compared, since those of a
    cached prefix may have been computed in another batch; and one key that rounds otherwise changes all rows of its
    sequence after it, so that those are one event.
    """
    at = next((n for n, one in enumerate(judgements) if (p := profiles.get(one.key)) and not p.identical), None)
    if at is None:
        return judgements
    first = profiles[judgements[at].key]
    node = graph.node(first.key)
    if node is not None and node.routed_unseen:
        return judgements
    earlier = [
        profile
        for one in judgements[:at]
        if (profile := profiles.get(one.key)) is not None
        and profile.key.name == first.key.name
        and profile.operation == first.operation
        and _code(graph, profile.key) == _code(graph, first.key)
        and profile.rows
    ]
    if not earlier:
        return judgements
    rows = events = first.different_rows
    if first.operation in CAUSAL:
        rows, events = first.different_in_full_view, first.sequences_in_full_view
    if not rows:
        return judgements
    chance = events * np.log(len(earlier) + 1) / 14
    rare = first.operation in ("moe", "combine", "router") or rows < FEWEST_OF_ROWS * first.rows
    dense = 0.0 if rare else first.different_share / 0.1
    strength = float(max(chance, dense))
    test = Test("bits", strength, rows, 0, f"bit-identical in {len(earlier)} earlier layers")
    tests = tuple(sorted((*judgements[at].tests, test), key=lambda one: -one.strength))
    judged: Judged = "introduced-here" if strength >= 1 else judgements[at].judged
    changed = list(judgements)
    changed[at] = replace(judgements[at], tests=tests, judged=judged)
    return changed


def _code(graph: TapGraph, key: TapKey) -> str | None:
    node = graph.node(key)
    return None if node is None else node.code


def _with_sources(judgements: list[Judgement], place: Judgement, graph: TapGraph) -> list[Judgement]:
    """What lies behind the place inherits from it."""
    behind = _descendants(place.key, graph)
    changed = []
    for one in judgements:
        inherits = one.key in behind and one.judged != "not-judged" and bool(one.error > 0 or one.tests)
        if inherits and (one.judged == "introduced-here" or one.inherited > one.floor):
            changed.append(replace(one, judged="inherited-from", source=place.key))
        else:
            changed.append(one)
    return changed


def _descendants(key: TapKey, graph: TapGraph) -> set[TapKey]:
    found = {key}
    for _ in range(2):
        for node in graph.nodes:
            if found & {*node.inputs, *node.operands, *((node.router,) if node.router else ())}:
                found.add(node.key)
    return found - {key}


def _first_difference(
    judgements: Sequence[Judgement], profiles: Mapping[TapKey, TapProfile]
) -> tuple[TapKey, FirstDifference] | None:
    for one in judgements:
        profile = profiles.get(one.key)
        if profile is not None and profile.first_difference is not None:
            return one.key, profile.first_difference
    return None


def _undecided(
    judgements: Sequence[Judgement], profiles: Mapping[TapKey, TapProfile], inheritance: Inheritance
) -> tuple[str, ...]:
    found: list[str] = []
    different = any(not profile.identical for profile in profiles.values())
    if different:
        found.append("which side is wrong; --reference with a run in higher precision decides it")
    unknown = sorted({one.name for one in inheritance.without_routing})
    if unknown:
        found.append(
            f"rows of {', '.join(unknown)} that stand out may have other experts; record moe_router_logits, and "
            "moe_correction_bias where a bias is added for the choice, to tell"
        )
    few = sorted({one.key.name for one in judgements if 0 < one.rows < 6})
    if few and different:
        found.append(f"small common factors in {', '.join(few)}, which have fewer than 6 rows; compare more tokens")
    return tuple(found)


def _undecided_texts(texts: Sequence[PartedText], *, recorded: bool) -> Iterator[str]:
    unknown = [text.parting for text in texts if text.cause == "unknown"]
    if unknown:
        first = unknown[0]
        others = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
        how = "the recorded logits choose neither token: sample greedily" if recorded else "record next_token_logits"
        where = f"sequence {first.sequence}{others} has another token from position {first.position} on"
        yield f"why {where}; {how} to tell"


def _notes(profiles: Sequence[TapProfile]) -> tuple[str, ...]:
    mixed: dict[tuple[str, str], list[str]] = {}
    for profile in profiles:
        if profile.baseline_dtype != profile.target_dtype:
            mixed.setdefault((profile.baseline_dtype, profile.target_dtype), []).append(profile.key.name)
    found = []
    for (left, right), names in mixed.items():
        different = list(dict.fromkeys(names))
        others = f" and {len(different) - 1} other names" if len(different) > 1 else ""
        found.append(f"The baseline has {left} and the target {right} in {different[0]}{others}; floors allow for both")
    return tuple(found)

"""The parts of records that hold what the analysis of all pairs found."""

from __future__ import annotations

from typing import Literal

from comparator.report.model import Model


class StrongestTest(Model, frozen=True, kw_only=True):
    """The test that comes nearest to an alarm, or is the strongest alarm; ``strength`` is value over threshold."""

    name: str
    strength: float
    value: float
    threshold: float
    where: str = ""


class TapAnalysis(Model, frozen=True, kw_only=True):
    """Where the error of a tap comes from. Errors are relative L2 errors of a row, medians over the rows."""

    judged: Literal["within-rounding", "introduced-here", "inherited-from", "after-a-routing-flip", "not-judged"]
    source: str | None = None
    """The tap where an inherited error was introduced."""
    error: float
    inherited: float
    introduced: float
    floor: float
    """What rounding explains when the inputs are equal."""
    multiple: float
    """The introduced error as a multiple of the floor."""
    rows: int
    rows_left_out: int
    """Rows that chose other experts and are not compared."""
    test: StrongestTest | None = None


class Place(Model, frozen=True, kw_only=True):
    """A tap of a layer."""

    name: str
    layer: int | None = None
    tags: dict[str, str] = {}
    tap: str | None = None
    """Id of the tap."""


class RoutingFlips(Model, frozen=True, kw_only=True):
    """Tokens of one layer that chose other experts on both sides."""

    layer: int | None
    rows: int
    flipped: int
    expected: float
    """How many the margins between experts predict, given the error of the logits."""
    largest_margin: float = 0.0
    """Margin to the next expert of a token that flipped, in errors of its logits."""
    weights_apart: float = 0.0
    """Largest difference of a weight (softmax over the chosen logits) of tokens whose experts agree."""


class ChosenTokensRecord(Model, frozen=True, kw_only=True):
    """What the recorded logits choose on both sides."""

    rows: int
    flipped: int
    """Rows whose largest logit is another token's."""
    log_probability_apart: float
    """Mean difference of the log probability of the baseline's choice."""
    largest_apart: float
    where: str
    """The token with the largest difference."""
    divergence: float = 0.0
    """Mean KL divergence of the target from the baseline, in nats a token."""


class PartedTextRecord(Model, frozen=True, kw_only=True):
    """A sequence whose sampled tokens differ from a position on."""

    sequence: int
    position: int
    baseline_token: int
    target_token: int
    cause: Literal["tie", "fault", "unknown"]
    margin: float | None = None
    """Distance of both tokens' logits in errors of the logits; None where they do not tell."""
    baseline_log_probability: float | None = None
    """Of the baseline's token, on the baseline."""
    target_log_probability: float | None = None
    """Of the baseline's token, on the target."""


class ReferenceRecord(Model, frozen=True, kw_only=True):
    """What a run in higher precision says of both sides."""

    worse: Literal["baseline", "target", "both", "neither"]
    place: Place | None = None


class RowExtentRecord(Model, frozen=True, kw_only=True):
    """Which rows of the place are beyond what inputs and rounding explain."""

    rows: int
    of: int
    """Rows that were compared."""
    group: str = ""
    """What they have in common: ``all``, ``decode``, ``prefill``, ``last token``, ``first token of a later chunk``,
    ``positions from 64 on``, ``sequence 2``, ...; empty where they are no group."""
    positions: tuple[int, int] | None = None
    """Lowest and highest position."""
    sequences: int = 0
    """Sequences that have such rows."""

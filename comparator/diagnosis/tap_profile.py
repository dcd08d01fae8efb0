"""The numbers of one tap, which is all that the diagnosis gets of it."""

from __future__ import annotations

from msgspec import Struct, field

from comparator.diagnosis.channel_blocks import BlockNumbers
from comparator.diagnosis.floors import Operation
from comparator.diagnosis.measures import ChannelNumbers, Estimate
from comparator.diagnosis.operands import Residuals
from comparator.diagnosis.routing import Choices
from comparator.diagnosis.tap_rows import Float, RowLabels, TapKey
from comparator.diagnosis.tokens import TokenChoices


class GroupScale(Struct, frozen=True):
    """The factor of a group of rows less that of the others."""

    group: str
    scale: Estimate


class ExpertNumbers(Struct, frozen=True):
    expert: int
    rows: int
    scale: Estimate
    """Factor of its rows less that of the others."""


class Nonfinite(Struct, frozen=True):
    """NaN and infinities. Where both sides have the same one at a place, they agree."""

    baseline: int = 0
    target: int = 0
    apart: int = 0
    """Places where only one side has it, or each another."""
    first: str | None = None
    """The first row with one that is not on the other side as well."""


class FirstDifference(Struct, frozen=True):
    """The first element, in order of rows and channels, that is not the same on both sides."""

    row: str
    channel: int
    baseline: float
    target: float


class TapProfile(Struct, frozen=True, eq=False):
    """Numbers of one tap. Arrays have shape ``(rows,)`` and follow ``labels``."""

    key: TapKey
    operation: Operation
    labels: RowLabels
    channel_count: int
    baseline_dtype: str
    target_dtype: str
    ranks: int
    reduction_length: int | None
    identical: bool
    """Equal in every bit that the dtype can show (NaN equals NaN)."""
    different_rows: int
    """Rows with an element that differs."""
    different_in_full_view: int
    """Those of them whose earlier tokens are rows as well, so that all they may attend to was compared."""
    sequences_in_full_view: int
    """Of how many sequences these are; where nothing tells rows apart, they are of one."""
    different_share: float
    """Share of the elements of those rows that differ."""
    independent: float
    """Rows' worth of independent errors; infinity where no part of the channels is near a limit."""
    error: Float
    """Relative L2 error of each row."""
    added: Float
    """Error that the operation itself is asked for: of a sum what is left after its operands' errors, of an operand
    that was not recorded the error of the difference; else ``error``."""
    inherited: Float | None
    """Error of the summed operands, where the sum is none (a norm in between); else None, and the graph gives it."""
    extra_floor: Float
    """Relative rounding error of a difference of two recorded values, beside the operation's floor."""
    cosine: Float
    scale: Estimate
    raw_scale: Estimate
    """Without the shrinking of outlier channels."""
    offset: Estimate
    group_scales: tuple[GroupScale, ...] = ()
    channels: ChannelNumbers | None = None
    blocks: tuple[BlockNumbers, ...] = ()
    shards: tuple[BlockNumbers, ...] = ()
    """For each number of pieces that ranks hold on a side."""
    experts: tuple[ExpertNumbers, ...] = ()
    residuals: Residuals | None = None
    choices: tuple[Choices, ...] = ()
    """Under the known number of experts per token, or under each common one."""
    tokens: TokenChoices | None = None
    """Of logits: the tokens that they choose."""
    nonfinite: Nonfinite = field(default_factory=Nonfinite)
    first_difference: FirstDifference | None = None
    parts: tuple[TapProfile, ...] = ()
    """Where an encoder of images or sound made some of the rows: the others and these, each measured by itself, or
    these alone where there are no others. ``extra_floor`` of these is what the encoder explains."""
    zero: tuple[bool, bool] = (False, False)
    """Whether all of the baseline, of the target, is zero although the other is not."""

    @property
    def rows(self) -> int:
        return len(self.error)

"""The records of a report, one JSON object each; ``type`` tells them apart.

The types and the names of their fields are those of SGLang's comparator (see its JSONL report), so that scripts
written for it keep working; fields of our own come on top: ``category``, ``tags``, ``tokens``, ``plan``, ...
``comparator/report/report.schema.json`` is the JSON schema, made from these models.
"""

from __future__ import annotations

from typing import Any, Literal

from comparator.report.diagnosis_fields import (
    ChosenTokensRecord,
    PartedTextRecord,
    Place,
    ReferenceRecord,
    RoutingFlips,
    RowExtentRecord,
    TapAnalysis,
)
from comparator.report.model import Model
from comparator.verdict.judge import Category


class Note(Model, frozen=True, kw_only=True):
    """Something to know about one comparison; ``kind`` is error where it makes the comparison fail."""

    kind: Literal["error", "info", "warning"]
    category: str
    """The short name of the message (``comparator.messages``, docs/messages.md): ``axes-not-aligned``."""
    message: str


class Location(Model, frozen=True, kw_only=True):
    step: int | None = None


class TensorStats(Model, frozen=True, kw_only=True):
    mean: float
    abs_mean: float
    std: float
    min: float
    max: float
    percentiles: dict[int, float] = {}
    nan_count: int = 0
    inf_count: int = 0


class TensorInfo(Model, frozen=True, kw_only=True):
    shape: list[int]
    dtype: str
    stats: TensorStats
    sample: str | None = None


class DiffInfo(Model, frozen=True, kw_only=True):
    """Metrics of one difference; see ``comparator.measure.difference.Difference``."""

    rel_diff: float
    max_abs_diff: float
    mean_abs_diff: float
    abs_diff_percentiles: dict[int, float] = {}
    max_diff_coord: list[int]
    baseline_at_max: float
    target_at_max: float
    predicate: str = ""
    passed: bool
    per_token_rel_diff: list[float] | None = None
    relative_l2: float = 0.0
    scale: float = 1.0
    differing: int = 0
    max_diff_token: str | None = None
    max_token_rel: float | None = None
    """The largest ``rel`` of a single token, where tokens can be told apart."""


class ReplicatedCheck(Model, frozen=True, kw_only=True):
    axis: str
    group_index: int
    compared_index: int
    baseline_index: int = 0
    passed: bool
    atol: float
    diff: DiffInfo | None = None
    side: Literal["baseline", "target"]


class BundleFile(Model, frozen=True, kw_only=True):
    shape: list[int]
    dtype: str
    rank: int | None = None
    parallel_info: dict[str, str] | None = None
    filename: str | None = None
    step: int | None = None
    kept: bool = True
    """False: it takes no part in the comparison, because of ``reason``."""
    reason: str | None = None


class BundleSide(Model, frozen=True, kw_only=True):
    num_files: int
    files: list[BundleFile]
    dims: str | None = None


class BundleInfo(Model, frozen=True, kw_only=True):
    """Both sides: x is the baseline, y the target."""

    x: BundleSide | None
    y: BundleSide | None


class TokenCounts(Model, frozen=True, kw_only=True):
    """How many tokens were compared and what only one side had, by reason."""

    matched: int
    only_baseline: dict[str, int] = {}
    only_target: dict[str, int] = {}
    padding_baseline: int = 0
    padding_target: int = 0


class _Record(Model, frozen=True, kw_only=True):
    errors: list[Note] = []
    infos: list[Note] = []


class ConfigRecord(_Record, frozen=True, kw_only=True):
    type: Literal["config"] = "config"
    config: dict[str, Any]


class RankInfoRecord(_Record, frozen=True, kw_only=True):
    type: Literal["rank_info"] = "rank_info"
    label: str
    rows: list[dict[str, Any]]


class InputIdsRecord(_Record, frozen=True, kw_only=True):
    type: Literal["input_ids"] = "input_ids"
    label: str
    rows: list[dict[str, Any]]


class LogRecord(_Record, frozen=True, kw_only=True):
    """Findings about a whole run: a missing rank, a truncated file, taps that never fired."""

    type: Literal["log"] = "log"


class _Comparison(_Record, frozen=True, kw_only=True):
    name: str
    tags: dict[str, str] = {}
    location: Location = Location()
    category: Category
    tap: str | None = None
    """Id of the tap in the target (or in the baseline, where only that has it)."""

    @property
    def label(self) -> str:
        """The tensor for people: ``attn_output layer_id=3``."""
        return " ".join([self.name, *[f"{key}={value}" for key, value in self.tags.items()]])


class TensorComparison(_Comparison, frozen=True, kw_only=True):
    """A pair of tensors. ``diff`` is None where the shapes differ (``shape_mismatch``) or only fingerprints were
    recorded (``level`` is ``hash``). Where ``level`` is ``checksum``, ``--quick`` found equal checksums, and the
    statistics are zero, since none were taken."""

    type: Literal["comparison_tensor"] = "comparison_tensor"
    baseline: TensorInfo
    target: TensorInfo
    unified_shape: list[int] | None
    shape_mismatch: bool
    diff: DiffInfo | None = None
    diff_downcast: DiffInfo | None = None
    downcast_dtype: str | None = None
    traced_plan: dict[str, Any] | None = None
    """How both sides were put together, in the form of SGLang's report; for its dumps only."""
    replicated_checks: list[ReplicatedCheck] = []
    raw_bundle_info: BundleInfo | None = None
    tokens: TokenCounts | None = None
    level: str = "full"
    first_bad_token: str | None = None
    """The first token, in the order of the rows, whose own ``rel`` is beyond the threshold."""
    analysis: TapAnalysis | None = None
    """What the analysis of all pairs says about the tap, over all its steps; None where it was not analysed."""


class SkippedComparison(_Comparison, frozen=True, kw_only=True):
    """A pair that was not compared; ``reason`` is one of the words of SGLang's report, or ``request_ids``."""

    type: Literal["comparison_skip"] = "comparison_skip"
    reason: str
    message: str = ""
    available_side: Literal["baseline", "target"] | None = None
    available_tensor_info: TensorInfo | None = None
    available_bundle_info: BundleSide | None = None


class ValueComparison(_Comparison, frozen=True, kw_only=True):
    """Values that are no tensors: what both sides hold, as text, and where they first differ."""

    type: Literal["comparison_non_tensor"] = "comparison_non_tensor"
    baseline_value: str
    target_value: str
    baseline_type: str
    target_type: str
    values_equal: bool
    difference_path: str | None = None
    """Where the values first differ, ``['layers'][3]``; empty for the whole value."""


class ErroredComparison(_Comparison, frozen=True, kw_only=True):
    """A pair that cannot be compared, for a reason that concerns it alone."""

    type: Literal["comparison_error"] = "comparison_error"
    exception_type: str
    exception_message: str
    traceback_str: str = ""
    hint: str = ""
    reason: str = "pair-not-comparable"
    """Short name of the error (docs/messages.md)."""


class DiagnosisRecord(_Record, frozen=True, kw_only=True):
    """What the analysis of all pairs found; it comes before the summary."""

    type: Literal["diagnosis"] = "diagnosis"
    verdict: Literal["agree", "differ", "undecided"]
    words: str
    """One paragraph."""
    place: Place | None = None
    """The tap where error was introduced; None when the runs agree."""
    also: list[Place] = []
    rows: RowExtentRecord | None = None
    """None where no single row is beyond rounding, as with a small factor of all."""
    nearest: float
    """Strength of the strongest test; from 1 on the runs differ."""
    first_different_bit: Place | None = None
    first_different_row: str | None = None
    flips: list[RoutingFlips] = []
    tokens: ChosenTokensRecord | None = None
    """None where no logits were recorded."""
    texts: list[PartedTextRecord] = []
    reference: ReferenceRecord | None = None
    undecided: list[str] = []
    notes: list[str] = []


class RowAccount(Model, frozen=True, kw_only=True):
    """The rows that one side recorded under a name; ``compared`` and ``left_out`` add up to ``recorded``."""

    recorded: int
    compared: int
    left_out: dict[str, int] = {}
    """Reason to number of rows: padding, a prefix that the other side had cached, no counterpart, ..."""


class NameRows(Model, frozen=True, kw_only=True):
    name: str
    baseline: RowAccount
    target: RowAccount


class AccountsRecord(_Record, frozen=True, kw_only=True):
    """What became of every row that was recorded, by name; it comes before the summary. A tensor or value without a
    token dimension counts as one row."""

    type: Literal["accounts"] = "accounts"
    names: list[NameRows]


class SummaryRecord(_Record, frozen=True, kw_only=True):
    """The last record: how many comparisons of each category, and what the command line exits with."""

    type: Literal["summary"] = "summary"
    total: int
    passed: int
    failed: int
    skipped: int
    errored: int = 0
    exit_code: int = 0
    first_divergence: str | None = None
    first_divergence_tap: str | None = None
    verdict: Literal["agree", "differ", "undecided"] | None = None
    """What the analysis of all pairs says; None where there was none."""
    first_different: str | None = None
    """The first tensor or value, in the order of execution, that is not the same on both sides in every bit."""
    bits: str | None = None
    """The same as a sentence."""
    only_baseline: list[str] = []
    """Names that the target has no record of."""
    only_target: list[str] = []
    beside_tensors: list[str] = []
    """What else differs (layout, versions, settings), when the comparison fails: at most three lines."""


Comparison = TensorComparison | SkippedComparison | ValueComparison | ErroredComparison
ReportRecord = (
    ConfigRecord
    | RankInfoRecord
    | InputIdsRecord
    | LogRecord
    | TensorComparison
    | SkippedComparison
    | ValueComparison
    | ErroredComparison
    | DiagnosisRecord
    | AccountsRecord
    | SummaryRecord
)


def to_json(record: ReportRecord) -> str:
    """One line of JSON."""
    return record.model_dump_json()

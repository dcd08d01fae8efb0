"""The names of all warnings and errors, one line for each. ``docs/messages.md`` has a paragraph for each.

``--allow NAME`` makes an error one that does not fail the comparison, ``--error NAME`` the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

Severity = Literal["error", "warning", "info"]


class Message(Struct, frozen=True):
    """What is said under one name."""

    severity: Severity
    """Without switches. An error makes the pair, or the comparison, fail."""
    summary: str


MESSAGES: Mapping[str, Message] = {
    # About a run
    "tap-never-fired": Message("warning", "An installed tap recorded nothing on any rank."),
    "missing-rank": Message("error", "A rank of the run has no file."),
    "truncated": Message("error", "A file of the run ends in the middle of a record."),
    "corrupted": Message("error", "Bytes of a file do not match their checksum, or make no sense."),
    "missing-records": Message("error", "A file holds fewer records than its process wrote."),
    "mixed-runs": Message("error", "The files in the directory are of several runs, or of worlds of several sizes."),
    "repaired": Message("error", "A file was repaired; what is listed was left out."),
    "lost": Message("error", "Values could not be recorded and are not in the run."),
    "left-out": Message("warning", "Taps in CUDA graphs were not recorded: no room for them, or captured too early."),
    "recorded-beside": Message("warning", "Another process of the same rank recorded into a folder beside."),
    "unclosed": Message("warning", "A file of the run was not closed; its last records may be missing."),
    "empty": Message("error", "A file of the run holds no records."),
    "unreadable": Message("error", "A file of the run cannot be read, or has another name than the run's files."),
    "other-folder": Message("info", "The only folder with a recording was taken, inside the one that was given."),
    "no-batch-records": Message("info", "The runs hold no record of their batches, so steps are compared one by one."),
    "layout-assumed": Message("info", "Nothing says how a batch lies in memory; it is taken for packed tokens."),
    # About a run by itself (``comparator check``)
    "not-put-together": Message("error", "The pieces of a tensor do not make one tensor."),
    "replicas-disagree": Message("error", "Ranks that should hold the same do not."),
    "sum-not-taken": Message("error", "A value holds one rank's partial sum where the sum over all ranks should be."),
    "sum-is-off": Message("error", "A value is not the sum of what it is computed from."),
    "norm-is-off": Message("error", "A value is no norm of what it is computed from, whatever its weights."),
    "weights-not-tied": Message("error", "Two weights are nearly the same: they were meant to be tied."),
    # About the comparison as a whole
    "nothing-to-compare": Message("error", "Nothing was selected in the runs."),
    "nothing-in-common": Message("error", "No tensor is in both runs."),
    "partly-one-sided": Message("error", "Only one side has a tensor of a name under which both recorded something."),
    "lost-with-damage": Message("error", "Only one side has a name, and a part of the other side's run is lost."),
    "sequences-not-found": Message("error", "Each side has sequences that the other has not."),
    "nothing-compared": Message("error", "Both sides recorded rows of a name, and none was compared."),
    "only-empty": Message("error", "All tensors that both sides have are empty."),
    "stopped-early": Message("info", "Reporting stopped at the number of failures that --max-fail gives."),
    "interrupted": Message("error", "The comparison was interrupted; the report holds what was found until then."),
    "changed-while-read": Message("error", "Somebody wrote to a file of a run while it was compared."),
    "map-rule-unused": Message("warning", "A rule of the map matches no record of a side."),
    "pattern-unused": Message("warning", "A pattern that was given matches no recorded name."),
    "gradients-of-ranks": Message(
        "warning", "Gradients of values differ by the number of ranks over which the batch is spread."
    ),
    # A pair that is not compared
    "only-in-baseline": Message("info", "Only the baseline has this tensor."),
    "only-in-target": Message("info", "Only the target has this tensor."),
    "request-ids": Message("info", "Request ids differ between any two runs and are not compared."),
    "record-of-batch": Message("info", "SGLang's own record of a batch, from which token layouts are made."),
    "ranks-not-related": Message("warning", "Of SGLang's dumps, a tensor of ranks that no dims relate is skipped."),
    "unreadable-file": Message("error", "A file of a pair cannot be read."),
    "empty-rank": Message("info", "A data-parallel rank holds an empty tensor and takes no part."),
    # A pair that cannot be compared
    "pair-not-comparable": Message("error", "A pair cannot be compared; the message says why."),
    "bad-dims": Message("error", "Dims cannot be understood, or do not fit the tensor."),
    "ranks-without-dims": Message("error", "Several ranks recorded a tensor without dims that say how they relate."),
    "axis-not-declared": Message("error", "Ranks differ in a parallel axis that the dims do not mention."),
    "ranks-not-told-apart": Message("error", "No recorded axis that the dims name tells the ranks of a tensor apart."),
    "records-not-told-apart": Message(
        "error", "A rank recorded a tensor several times in a step, under the same tags."
    ),
    "piece-missing": Message("error", "A piece or summand of a tensor was not recorded."),
    "shapes-differ": Message("error", "Shards of a tensor have shapes that do not fit together."),
    "dimensions-differ": Message("error", "Both sides name other dimensions, or fuse them in another way."),
    "no-token-dimension": Message("error", "A tensor has several parts and no token dimension to join them along."),
    "rows-of-unknown-tokens": Message("error", "Data-parallel ranks hold rows, and nothing says of which tokens."),
    "no-common-token": Message("error", "No token of a tensor is on both sides."),
    "steps-not-joined": Message("error", "Several steps make one tensor, and nothing says how their tokens join."),
    "companion-not-recorded": Message("error", "The tensor that says how rows were sorted was not recorded."),
    "damaged-record": Message("error", "The bytes of a record do not match their checksum."),
    "unreadable-object": Message("error", "The object that holds a record cannot be read, after retries."),
    "levels-differ": Message("error", "A tensor was recorded at levels that cannot be compared with each other."),
    "fingerprint-schemes-differ": Message("error", "Fingerprints were computed in different ways."),
    "samples-differ": Message("error", "The samples of both sides hold other rows."),
    "ranks-differ": Message("error", "Ranks of one side recorded other values of what is no tensor."),
    "no-criterion": Message("error", "Criteria were given, and none is for this tensor."),
    "unexpected-error": Message(
        "error", "A payload is damaged, or the comparator has a fault; the traceback says where."
    ),
    "worker-ended": Message("error", "The process that compared it ended without a result, twice."),
    # About a pair that is compared
    "axes-not-aligned": Message("error", "The dimensions of both sides could not be aligned; compared as they lie."),
    "too-few-tokens-matched": Message("error", "Fewer tokens were compared than --min-matched asks for."),
    "token-counts-differ": Message("error", "Both sides have other numbers of tokens in the same step."),
    "other-tokens": Message("error", "The rows that are compared with each other are not the same tokens."),
    "records-joined": Message("info", "Several records of one step were joined as rows."),
    "equal-by-checksum": Message("info", "With --quick: the bytes are equal by their checksums and were not read."),
    "tokens-joined": Message("info", "How tokens were joined: which sequence parted, what was paired by arrival."),
    "shared-pieces-assumed": Message("warning", "Neighbouring ranks were taken to hold the same piece."),
    "padded-vocabulary": Message("info", "One side's logits have more columns; they are taken for padding."),
    "non-finite": Message("warning", "A side holds NaN or infinite elements."),
    "scaled": Message("warning", "One factor explains most of the difference, which rounding would not."),
    "token-differs": Message("warning", "One token differs, which the others hide."),
    "fingerprints-differ": Message("info", "Fingerprints differ; where is said."),
    "compared-by-statistics": Message("info", "Only statistics were recorded; equal ones do not prove equal tensors."),
    "value-differs": Message("info", "A value that is no tensor differs; where is said."),
}

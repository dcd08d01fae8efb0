"""Make the records that say what the analysis found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import asdict, replace

from comparator.report.diagnosis_fields import (
    ChosenTokensRecord,
    PartedTextRecord,
    Place,
    ReferenceRecord,
    RoutingFlips,
    RowExtentRecord,
    StrongestTest,
    TapAnalysis,
)
from comparator.report.records import DiagnosisRecord

if TYPE_CHECKING:
    from comparator.diagnosis import Diagnosis, ReferenceDiagnosis, TapKey
    from comparator.diagnosis import Judgement as TapJudgement


def tap_analysis(judgement: TapJudgement) -> TapAnalysis:
    """What is said about one tap."""
    test = judgement.tests[0] if judgement.tests else None
    return TapAnalysis(
        judged=judgement.judged,
        source=None if judgement.source is None else judgement.source.label,
        error=judgement.error,
        inherited=judgement.inherited,
        introduced=judgement.introduced,
        floor=judgement.floor,
        multiple=judgement.multiple,
        rows=judgement.rows,
        rows_left_out=judgement.left_out,
        test=None
        if test is None
        else StrongestTest(
            name=test.name, strength=test.strength, value=test.value, threshold=test.threshold, where=test.where
        ),
    )


_WORSE = {
    "target": "Against the reference the target is the wrong one",
    "baseline": "Against the reference the baseline is the worse one, not the target",
    "both": "Against the reference both sides are wrong",
    "neither": "Against the reference both sides are as good as rounding allows",
}


def in_words(
    diagnosis: Diagnosis,
    reference: ReferenceDiagnosis | None = None,
    *,
    bitwise: bool = False,
    around: tuple[str, str] = ("", ""),
) -> str:
    """One paragraph that says whether the runs agree, and if not where and how they part.

    ``around``: sentences before and after it (``Tally.around``).
    """
    before, after = around
    if bitwise and diagnosis.first_difference is not None:
        after = ""  # every pair whose bits differ fails, and that is said
    return " ".join(filter(None, (before, _of_diagnosis(diagnosis, reference, bitwise), after)))


def _of_diagnosis(diagnosis: Diagnosis, reference: ReferenceDiagnosis | None, bitwise: bool) -> str:
    if bitwise and diagnosis.first_difference is not None:
        key, first = diagnosis.first_difference
        return (
            f"The runs are not the same bit for bit: the first difference is at {key.label}, {first.row}, channel "
            f"{first.channel}: {first.baseline:.6g} against {first.target:.6g}."
        )
    from comparator.diagnosis.words import describe  # two of SGLang's dumps have no diagnosis

    words = describe(diagnosis if reference is None else replace(diagnosis, undecided=()))
    if reference is None:
        return words
    where = "" if reference.place is None else f", from {reference.place.label} on"
    side, other = ("baseline", "target") if reference.worse == "baseline" else ("target", "baseline")
    reason = f": the {side}'s {reference.reason} the {other}'s" if reference.reason and where else ""
    return f"{words} {_WORSE[reference.worse]}{where}{reason}."


def diagnosis_record(
    diagnosis: Diagnosis,
    taps: Mapping[TapKey, str] | None = None,
    reference: ReferenceDiagnosis | None = None,
    *,
    bitwise: bool = False,
    around: tuple[str, str] = ("", ""),
) -> DiagnosisRecord:
    """The diagnosis as a record; ``taps`` gives the ids of the taps, ``around`` what the words begin and end with."""

    def place(key: TapKey | None) -> Place | None:
        if key is None:
            return None
        return Place(name=key.name, layer=key.layer, tags=dict(key.tags), tap=(taps or {}).get(key))

    first = diagnosis.first_difference
    return DiagnosisRecord(
        verdict=diagnosis.verdict,
        words=in_words(diagnosis, reference, bitwise=bitwise, around=around),
        place=place(diagnosis.place),
        also=[found for found in map(place, diagnosis.also) if found is not None],
        rows=None if diagnosis.extent is None else RowExtentRecord(**asdict(diagnosis.extent)),
        nearest=diagnosis.nearest,
        first_different_bit=None if first is None else place(first[0]),
        first_different_row=None if first is None else first[1].row,
        flips=[
            RoutingFlips(
                layer=flips.layer,
                rows=flips.rows,
                flipped=flips.flipped,
                expected=flips.expected,
                largest_margin=flips.largest_margin,
                weights_apart=flips.weights_apart,
            )
            for flips in diagnosis.flips
        ],
        tokens=None if diagnosis.tokens is None else ChosenTokensRecord(**asdict(diagnosis.tokens)),
        texts=[
            PartedTextRecord(
                sequence=text.parting.sequence,
                position=text.parting.position,
                baseline_token=text.parting.baseline,
                target_token=text.parting.target,
                cause=text.cause,
                margin=text.margin,
                baseline_log_probability=None if text.log_probabilities is None else text.log_probabilities[0],
                target_log_probability=None if text.log_probabilities is None else text.log_probabilities[1],
            )
            for text in diagnosis.texts
        ],
        reference=None if reference is None else ReferenceRecord(worse=reference.worse, place=place(reference.place)),
        undecided=list(diagnosis.undecided),
        notes=list(diagnosis.notes),
    )

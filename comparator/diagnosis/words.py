"""A diagnosis in words: one paragraph that says whether the runs agree, and if not where and how they part."""

from __future__ import annotations

from collections.abc import Iterator

from comparator.diagnosis.strengths import Test
from comparator.diagnosis.tokens import PartedText
from comparator.diagnosis.verdict import NO_ROWS, Diagnosis, Judgement

_LOOKS = {
    "growth": "its rows have {value:.3g} times the error that its inputs and rounding explain",
    "row": "{where} has {value:.3g} times the error that its inputs and rounding explain",
    "row replaced": "{where} is off by {value:.3g} of its size, which no other choice of experts explains",
    "row scale": "{where} differs by a factor",
    "scale": "all its elements differ by a common factor of about {factor:.4g}",
    "offset": "a constant was added to all its elements",
    "group": "rows of the group '{where}' have {value:.3g} times the error of the others",
    "group scale": "rows of the group '{where}' differ from the others by a factor of about {factor:.4g}",
    "channel": "{where} has {value:.3g} times the usual error",
    "channel scale": "{where} differs by a factor",
    "head": "{where} has {value:.3g} times the error of the median head",
    "head scale": "{where} differs by a factor of about {factor:.4g} from the other heads",
    "shard": "{where}, which one rank holds, has {value:.3g} times the error of the other shards",
    "shard scale": "{where}, which one rank holds, differs by a factor of about {factor:.4g} from the other shards",
    "expert": "tokens of {where} have {value:.3g} times the error of the others",
    "expert scale": "tokens of {where} differ by a factor of about {factor:.4g} from the others",
    "sum identity": "the {where}'s value is not the sum of its operands: a row is off by {value:.3g}",
    "bits": "{value:.0f} rows differ where the same tap is {where}",
    "nonfinite": "{value:.0f} elements are NaN or infinite on one side only, from {where} on",
    "zero": "the {where} is all zero",
    "token margin": "{where} chooses another token, {value:.3g} times the error of the logits apart",
    "flips": "{where} in the choice of experts, of which the margins explain a third at most",
    "flip margin": "a choice of experts flipped at a margin of {value:.3g} times the error of its logits",
}


def describe(diagnosis: Diagnosis) -> str:
    """The verdict as one paragraph of plain sentences, for the terminal."""
    compared = any(one.reason == NO_ROWS for one in diagnosis.judgements)
    if diagnosis.verdict == "undecided" and diagnosis.trained is not None and compared:
        return (
            "Weights were updated before all that was compared, which makes more of small differences: it is held "
            f"against {diagnosis.trained[1]}."
        )
    if diagnosis.verdict == "undecided":
        return "Nothing could be judged: no tap was measured on both sides."
    sentences = [_opening(diagnosis)]
    flipped = sum(one.flipped for one in diagnosis.flips)
    if flipped:
        rows = sum(one.rows for one in diagnosis.flips)
        expected = sum(one.expected for one in diagnosis.flips)
        sentences.append(
            f"{flipped} of {rows} choices of experts flipped where logits are nearly equal (their margins predict "
            f"{expected:.1f}); these tokens were left out where they cannot be compared."
        )
    apart = max((one.weights_apart for one in diagnosis.flips), default=0.0)
    if apart and (flipped or diagnosis.verdict == "differ"):
        sentences.append(f"Where both sides choose the same experts, their weights differ by {apart:.2g} at most.")
    if diagnosis.trained is not None:
        step, criterion = diagnosis.trained
        sentences.append(
            f"Behind step {step} weights were updated, which makes more of small differences: weights and later steps "
            f"are held against {criterion}."
        )
    sentences.extend(_texts(diagnosis))
    if diagnosis.verdict == "differ" and diagnosis.also:
        layers = [str(key.layer) for key in diagnosis.also if key.layer is not None]
        others = [key.label for key in diagnosis.also if key.layer is None]
        where = [f"in layers {', '.join(layers)}"] * bool(layers) + [f"as {', '.join(others)}"] * bool(others)
        sentences.append(f"The same tap stands out {' and '.join(where)} as well.")
    if diagnosis.first_difference is not None:
        sentences.extend(f"{note}." for note in diagnosis.notes[:2])
    if diagnosis.verdict == "differ" and diagnosis.undecided:
        sentences.append(f"This pair does not tell {diagnosis.undecided[0]}.")
    return " ".join(sentences)


def _texts(diagnosis: Diagnosis) -> Iterator[str]:
    """What became of sampled tokens."""
    ties = [text for text in diagnosis.texts if text.cause == "tie"]
    if ties:
        where = ", ".join(map(_parted, ties[:3]))
        more = f" and {len(ties) - 3} more" if len(ties) > 3 else ""
        yield f"Texts part at a tie of two tokens ({where}{more}); what follows is another text and is not compared."
    tokens = diagnosis.tokens
    if tokens is not None and (diagnosis.verdict == "differ" or diagnosis.other_engine) and tokens.largest_apart:
        yield (
            f"Log probabilities of the chosen tokens differ by {tokens.log_probability_apart:.2g} on average and by "
            f"{tokens.largest_apart:.2g} at most ({tokens.where}), distributions by a KL divergence of "
            f"{tokens.divergence:.2g} on average; {tokens.flipped} of {tokens.rows} choices are other tokens."
        )


def _parted(text: PartedText) -> str:
    where = f"sequence {text.parting.sequence} at position {text.parting.position}"
    if text.log_probabilities is None:
        return where
    baseline, target = text.log_probabilities
    return f"{where}, where the baseline's token has a log probability of {baseline:.3f} against {target:.3f}"


def _opening(diagnosis: Diagnosis) -> str:
    if diagnosis.place is None:
        until = "" if diagnosis.trained is None else f" up to step {diagnosis.trained[0]}"
        if diagnosis.first_difference is None:
            return f"The runs agree bit for bit{until}."
        return (
            f"The runs agree{until}: every difference is within rounding (the strongest test reaches "
            f"{diagnosis.nearest:.2f} of its threshold)."
        )
    place = diagnosis.judgement(diagnosis.place)
    assert place is not None
    looks = "; ".join(looks_like(test, place) for test in _telling(place))
    return f"The runs differ: error is introduced at {place.key.label} ({_size(place)}): {looks}.{_rows(diagnosis)}"


_GROUPS = {
    "all": "all of its rows",
    "decode": "the rows of decode passes alone",
    "prefill": "the rows of prefill passes alone",
    "last token": "the last token of each sequence alone",
    "last token of the prefill": "the last token of each prompt alone",
    "first token": "the first token of each sequence alone",
    "first token of a later chunk": "the first token behind each border of chunks alone",
}


def _rows(diagnosis: Diagnosis) -> str:
    """Which rows are beyond rounding, as a sentence behind another one."""
    extent = diagnosis.extent
    if extent is None:
        return ""
    count = f"{extent.rows} of {extent.of}"
    if extent.group:
        which = _GROUPS.get(extent.group, f"the rows of {extent.group} alone")
        return f" It is {which} ({count}) that {'are' if 'rows' in which else 'is'} beyond rounding."
    if extent.positions is None:
        return f" {count} of its rows are beyond rounding."
    first, last = extent.positions
    where = f"at position {first}" if first == last else f"between positions {first} and {last}"
    many = f" of {extent.sequences} sequences" if extent.sequences > 1 else ""
    verb = "is" if extent.rows == 1 else "are"
    return f" {count} rows{many}, {where}, {verb} beyond rounding."


def _size(place: Judgement) -> str:
    """How large the error of a tap is in its middle row."""
    if not place.error:
        return "most of its rows are the same on both sides"
    multiple = f", {place.multiple:.1f} times the floor" if place.multiple >= 1 else ""
    return f"error {place.error:.2g}, inherited {place.inherited:.2g}{multiple}"


def _telling(place: Judgement) -> list[Test]:
    """At most three tests that failed, one of each kind, those that say most first."""
    order = (
        "nonfinite",
        "zero",
        "sum identity",
        "scale",
        "head scale",
        "expert scale",
        "group scale",
        "shard scale",
        "offset",
    )
    failed: dict[str, Test] = {}
    for test in place.tests:
        if test.strength >= 1:
            failed.setdefault(test.name, test)
    ranked = sorted(failed.values(), key=lambda test: (test.name not in order, -test.strength))
    return ranked[:3]


def looks_like(test: Test, place: Judgement) -> str:
    """What a failed test says of the difference, as part of a sentence."""
    said = _LOOKS[test.name].format(value=test.value, where=test.where, factor=factor_of(test.value))
    return f"{said}, of the rows of images or sound" if test.encoded else said


def factor_of(value: float) -> float:
    """Target over baseline, from a factor less one that is relative to the midpoint of both."""
    return (1 + value / 2) / (1 - value / 2) if abs(value) < 2 else float("inf") if value > 0 else 0.0

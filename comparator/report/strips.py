"""What the analysis knows of single tokens and of choices of experts, as small numbers for the page; tokens
as text with a local tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from comparator.diagnosis import TapProfile
from comparator.errors import ComparatorError
from comparator.plan.operations import Coordinates
from comparator.report.shares import MOST_TIMES, Shares, expert_shares, label_of, levels, rank_shares, tolerated
from comparator.verdict.analysis import Analysis

MOST_SEQUENCES = 50
MOST_TOKENS = 2000
"""Tokens of a sequence, from its first on."""
MOST_CELLS = 400_000
"""Errors of single tokens at single taps."""
ABSENT = -99
"""In a grid: the tap has no such token."""
Decode = Callable[[Sequence[int]], list[str] | None]
"""Token ids as one text each; None where an id is none of the tokenizer's."""


@dataclass(frozen=True)
class TokenStrip:
    """One sequence."""

    sequence: int
    positions: list[int]
    ids: list[int]
    """Token ids, -1 where unknown; empty without any."""
    worst: list[float]
    """Largest error of the token at any tap, in multiples of what is tolerated there."""
    tap: list[int]
    """Where that is, of several the first: number in ``TokenStrips.taps``."""
    chosen: list[tuple[int, int, int, float, float]]
    """Of logits, per row: position, the token that each side chooses, the log probability of the baseline's choice on
    each side."""
    texts: list[str]
    """The tokens decoded; empty without a tokenizer that fits."""
    parts_at: int | None
    """Position of the first sampled token that is another one on the other side."""
    tokens: int
    """Of the whole sequence; more than ``positions`` where it was cut."""


@dataclass(frozen=True)
class Routed:
    """The choices of experts at one router."""

    tap: str
    experts: int
    top_k: int
    """Experts of a token."""
    assumed: bool
    """Whether ``top_k`` is one of several that are common, because it was not recorded."""
    flipped: list[int]
    """Rows with other experts on the other side."""
    rows: int
    margins: list[float]
    """Per flipped row, the margin in errors of its logits."""
    load: tuple[list[int], list[int]]
    """Per expert the rows that chose it, on the baseline and on the target."""


@dataclass(frozen=True)
class TokenStrips:
    """All sequences, and the routers."""

    sequences: list[TokenStrip]
    sequences_left_out: int
    taps: list[str]
    """Labels of the tensors: ``attn_output layer_id=3``."""
    grid: list[list[int]]
    """Per tap and token, in the order of all strips: ten times the decimal logarithm of error over tolerance; empty
    where it would be too large."""
    routers: list[Routed]
    experts: list[Shares]
    """Per tap behind a router, the errors of each expert's rows."""
    ranks: list[Shares]
    """Per tap whose channels are split, the errors of what each rank of the target holds."""


def token_strips(
    analysis: Analysis, token_ids: Sequence[npt.NDArray[np.int64]], places: Mapping[int, Coordinates]
) -> TokenStrips | None:
    """The strips of an analysis; ``places`` has the coordinates of the target's ranks. None where there is nothing:
    no tap's rows are known to be tokens, no router's logits were recorded, and no tap's channels are split."""
    routers, experts, ranks = _routers(analysis), expert_shares(analysis), rank_shares(analysis, places)
    taps: list[str] = []
    keys: list[npt.NDArray[np.int64]] = []
    times: list[npt.NDArray[np.float64]] = []
    logits: list[TapProfile] = []
    for family, found in analysis.profiles.items():
        profile = found.profile
        limit = tolerated(analysis, profile.key)
        if not profile.labels.known or not profile.rows or limit is None:
            continue
        taps.append(label_of(family))
        keys.append(profile.labels.keys)
        with np.errstate(all="ignore"):
            times.append(np.nan_to_num(np.minimum(profile.error / limit, MOST_TIMES), nan=0.0))
        if profile.tokens is not None:
            logits.append(profile)
    if not keys:
        empty = TokenStrips([], 0, [], [], routers, experts, ranks)
        return empty if routers or experts or ranks else None
    every, where = np.unique(np.concatenate(keys), return_inverse=True)
    worst, tap = _worst(len(every), where, np.concatenate(times), keys)
    sequences, counts = np.unique(every >> 32, return_counts=True)
    shown = sequences[:MOST_SEQUENCES]
    kept = np.concatenate([np.flatnonzero(every >> 32 == number)[:MOST_TOKENS] for number in shown])
    parted = {parting.sequence: parting.position for parting in analysis.taps.partings}
    strips = []
    for number, count in zip(shown.tolist(), counts.tolist(), strict=False):
        own = kept[every[kept] >> 32 == number]
        positions = every[own] & 0xFFFFFFFF
        strips.append(
            TokenStrip(
                number,
                positions.tolist(),
                _ids(token_ids, number, positions),
                worst[own].tolist(),
                tap[own].tolist(),
                _chosen(logits, number),
                [],
                parted.get(number),
                count,
            )
        )
    grid = _grid(every[kept], keys, times) if len(kept) * len(keys) <= MOST_CELLS else []
    return TokenStrips(strips, len(sequences) - len(shown), taps, grid, routers, experts, ranks)


def _worst(
    count: int, where: npt.NDArray[np.intp], times: npt.NDArray[np.float64], keys: Sequence[npt.NDArray[np.int64]]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Per token the largest error and the tap that has it, of several the first."""
    tap_of_row = np.repeat(np.arange(len(keys)), [len(one) for one in keys])
    order = np.lexsort((-tap_of_row, times, where.reshape(-1)))
    last = np.searchsorted(where.reshape(-1)[order], np.arange(count), side="right") - 1
    return times[order][last], tap_of_row[order][last]


def _ids(token_ids: Sequence[npt.NDArray[np.int64]], sequence: int, positions: npt.NDArray[np.int64]) -> list[int]:
    if not 0 <= sequence < len(token_ids):
        return []
    known = token_ids[sequence]
    ids = [int(known[at]) if at < len(known) else -1 for at in positions.tolist()]
    return ids if any(one >= 0 for one in ids) else []


def _chosen(logits: Sequence[TapProfile], sequence: int) -> list[tuple[int, int, int, float, float]]:
    rows = []
    for profile in logits[:1]:
        tokens = profile.tokens
        assert tokens is not None
        own = np.flatnonzero(profile.labels.sequence == sequence)[:MOST_TOKENS]
        rows = [
            (
                int(profile.labels.position[row]),
                int(tokens.baseline[row]),
                int(tokens.target[row]),
                float(tokens.baseline_log_probability[row]),
                float(tokens.target_log_probability[row]),
            )
            for row in own.tolist()
        ]
    return rows


def _grid(
    every: npt.NDArray[np.int64], keys: Sequence[npt.NDArray[np.int64]], times: Sequence[npt.NDArray[np.float64]]
) -> list[list[int]]:
    grid = []
    order = np.argsort(every, kind="stable")
    for own, error in zip(keys, times, strict=True):
        line = np.full(len(every), ABSENT, np.int64)
        at = np.searchsorted(every[order], own)
        at = np.minimum(at, len(every) - 1)
        fits = every[order][at] == own
        line[order[at[fits]]] = levels(error)[fits]
        grid.append(line.tolist())
    return grid


def _routers(analysis: Analysis) -> list[Routed]:
    found = []
    for family, one in analysis.profiles.items():
        if not one.profile.choices or one.profile.operation != "router":
            continue
        choices = one.profile.choices[0]
        flipped = np.flatnonzero(choices.flipped)
        noise = np.maximum(choices.noise[flipped], 1e-300)
        found.append(
            Routed(
                label_of(family),
                one.profile.channel_count,
                choices.top_k,
                len(one.profile.choices) > 1,
                flipped[:MOST_TOKENS].tolist(),
                one.profile.rows,
                (choices.margin[flipped] / noise)[:MOST_TOKENS].tolist(),
                (choices.load[0].tolist(), choices.load[1].tolist()),
            )
        )
    return found


def open_tokenizer(path: str) -> Decode:
    """A tokenizer from ``tokenizer.json``, or from a model's folder. Raises ComparatorError where there is none.

    Nothing is fetched, and no code of a model is run.
    """
    given = Path(path)
    file = given / "tokenizer.json" if given.is_dir() else given
    try:
        if file.is_file() and file.suffix == ".json":
            from tokenizers import Tokenizer

            fast = Tokenizer.from_file(str(file))
            return _decoder(fast.get_vocab_size(), lambda one: str(fast.decode([one], skip_special_tokens=False)))
        if given.is_dir():
            from transformers import AutoTokenizer

            slow = AutoTokenizer.from_pretrained(str(given), local_files_only=True, trust_remote_code=False)
            return _decoder(len(slow), lambda one: str(slow.decode([one])))
    except ImportError as error:
        raise ComparatorError(f"--tokenizer {path} needs the package {error.name}; pip install {error.name}") from None
    except Exception as error:  # the libraries raise exceptions of their own, up to plain Exception
        raise ComparatorError(f"--tokenizer {path} cannot be read: {error}") from None
    raise ComparatorError(f"--tokenizer {path}: neither a tokenizer.json nor a model's folder")


def _decoder(size: int, decode: Callable[[int], str]) -> Decode:
    known: dict[int, str] = {}

    def texts(ids: Sequence[int]) -> list[str] | None:
        if any(one >= size for one in ids):
            return None
        for one in set(ids) - known.keys():
            known[one] = decode(one) if one >= 0 else "?"
        return [known[one] for one in ids]

    return texts


def with_texts(strips: TokenStrips, decode: Decode) -> TokenStrips:
    """The strips with their tokens as text, where the tokenizer knows them all."""
    decoded = [replace(strip, texts=decode(strip.ids) or []) for strip in strips.sequences]
    return replace(strips, sequences=decoded)

"""The sums of a fingerprint, as they are defined, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

STRIPES = 8
LANES = 16
"""Words of a stripe. A strand is made of the words of one lane of a block, one from each stripe."""
BLOCK_BYTES = STRIPES * LANES * 8
STRAND = 0x9E3779B97F4A7C15
"""What the keys of neighbouring strands differ by: 2**64 divided by the golden ratio."""
_BLOCKS_AT_A_TIME = 64
_HALF = np.uint64(32)
_LOWER = np.uint64(0xFFFFFFFF)


def _mixed_first(word: Words) -> Words:
    """The last step of MurmurHash3 with 64 bits (``fmix64`` in https://github.com/aappleby/smhasher)."""
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return word ^ (word >> np.uint64(33))


def _mixed_second(word: Words) -> Words:
    """The last step of SplitMix64 (https://prng.di.unimi.it/splitmix64.c)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


STRIPE_KEYS = _mixed_second(np.arange(1, 2 * STRIPES + 1, dtype=np.uint64) * np.uint64(STRAND)).reshape(STRIPES, 2)
"""The first outputs of SplitMix64 with seed 0: of each stripe one for the first sum and one for the second."""


def block_sums(data: Any) -> bytes:
    """The two sums over a contiguous bytes-like object: 16 bytes, both as little-endian numbers of 64 bits."""
    given = np.frombuffer(data, np.uint8)
    sums = np.zeros(2, "<u8")
    step = _BLOCKS_AT_A_TIME * BLOCK_BYTES
    for begin in range(0, given.size, step):
        piece = given[begin : begin + step]
        if missing := -piece.size % BLOCK_BYTES:
            piece = np.concatenate([piece, np.zeros(missing, np.uint8)])
        words = piece.view("<u8").astype(np.uint64, copy=False).reshape(-1, STRIPES, LANES)
        strands = np.arange(1, words.shape[0] * LANES + 1, dtype=np.uint64) + np.uint64(begin // BLOCK_BYTES * LANES)
        keys = (strands * np.uint64(STRAND)).reshape(-1, LANES)
        for which, mixed in enumerate((_mixed_first, _mixed_second)):
            keyed = words ^ STRIPE_KEYS[:, which, None]
            products = keyed & _LOWER
            products *= keyed >> _HALF
            products += keyed
            # Of arrays, since numpy warns where scalars wrap around.
            sums[which : which + 1] += mixed(products.sum(axis=1, dtype=np.uint64) ^ keys).sum(dtype=np.uint64)
    return sums.tobytes()

"""Fingerprints: 128 bits that stand for the dtype, shape and bytes of a tensor.

What takes time is a sum over blocks of the bytes, so that it can be computed in any order and by many threads: by the
compiled module where the package was installed with a C compiler, by numpy (``reference``, the definition), and on a
CUDA device by ``dumper/values/device_kernels``. docs/format.md describes it for readers in other languages.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xxhash

from dumper.values.fingerprint import reference
from tensortap.compiled import load

if TYPE_CHECKING:
    from dumper.values.fingerprint import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

COMPILED = _compiled is not None
SCHEME = "block-sums"
"""How the fingerprints of this version are computed, as their records say it."""
FIRST_SCHEME = "xxh3"
"""Of records that say nothing: XXH3-128 of everything, one byte after the other."""
SUMS_BYTES = 16


class UnknownSchemeError(ValueError):
    """A fingerprint that is computed in a way which this version does not know."""


def fingerprint(dtype: str, shape: Sequence[int], data: Any, scheme: str = SCHEME) -> str:
    """32 hexadecimal digits, equal when dtype, shape and bytes are equal, and else different but for collisions.

    ``dtype``: the recorded name. ``data``: a contiguous bytes-like object, the elements in row-major order and little-
    endian. Raises UnknownSchemeError.
    """
    if scheme == SCHEME:
        return from_sums(dtype, shape, memoryview(data).nbytes, block_sums(data)).hex()
    if scheme == FIRST_SCHEME:
        digest = xxhash.xxh3_128(f"{dtype}[{','.join(map(str, shape))}]\n".encode())
        digest.update(data)
        return digest.hexdigest()
    raise UnknownSchemeError(
        f"this version does not know fingerprints of scheme {scheme!r}, only {SCHEME} and {FIRST_SCHEME}"
    )


def block_sums(data: Any) -> bytes:
    """The part of a fingerprint that depends on the bytes: 16 bytes, two little-endian numbers of 64 bits."""
    return reference.block_sums(data) if _compiled is None else _compiled.block_sums(data)


def from_sums(dtype: str, shape: Sequence[int], nbytes: int, sums: bytes) -> bytes:
    """The 16 bytes of a fingerprint from those of ``block_sums``: XXH3-128, seed 0, of the dtype's name, the shape as
    in ``[2,3]``, the number of bytes, a newline, and the sums."""
    digest: bytes = xxhash.xxh3_128_digest(described(dtype, tuple(shape), nbytes) + sums)
    return digest


@functools.lru_cache(4096)
def described(dtype: str, shape: tuple[int, ...], nbytes: int) -> bytes:
    """What the sums of a fingerprint stand behind when it is taken of both."""
    return f"{dtype}[{','.join(map(str, shape))}]{nbytes}\n".encode()

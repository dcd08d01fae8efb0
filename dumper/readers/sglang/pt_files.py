"""SGLang's dump files: how they are named, and what is in one. torch reads what ``plain_pt`` leaves to it.

A file is called ``step=0___rank=0___dump_index=7___name=attn_output___recompute_status=disabled___layer_id=3.pt``
and holds ``torch.save({"value": ..., "meta": {...}})``; a file whose content has no ``value`` is a bare value.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dumper.format.regular_files import open_to_read
from dumper.readers.sglang.plain_pt import StoredTensor, Unknown, load_plain
from dumper.reading.named_files import PARALLEL_KEYS

SEPARATOR = "___"
_INDEX = f"{SEPARATOR}dump_index="
_PLACE_KEYS = frozenset({"pp_rank", "tp_rank", "cp_rank", "ep_rank", "etp_rank"})
"""Keys that ``DUMPER_INCLUDE_PARALLEL_RANK_IN_FILENAME`` adds; the metadata says the same."""
OWN_KEYS = frozenset({"step", "rank", "dump_index", "name", "recompute_status"}) | _PLACE_KEYS
"""Keys of a file name that are no tags."""


class PtFileError(Exception):
    """A file that cannot be read; the message names it and says why."""


class Content(Struct, frozen=True):
    """What one file holds."""

    value: Any
    """A ``StoredTensor`` or a ``torch.Tensor`` on the CPU (mapped where the format allows it), or plain values."""
    meta: Mapping[str, Any]


def parse_file_name(name: str) -> dict[str, str]:
    """The ``key=value`` parts of a file name, as they are written; parts without ``=`` are ignored.

    SGLang 0.5.9 and before number passes from 1, as ``forward_pass_id``; here they are steps from 0.
    """
    parts = _parts(name.removesuffix(".pt"))
    if "step" not in parts and parts.get("forward_pass_id", "").isdecimal():
        parts["step"] = str(int(parts.pop("forward_pass_id")) - 1)
    return parts


def _parts(text: str) -> dict[str, str]:
    return dict([part.split("=", 1) for part in text.split(SEPARATOR) if "=" in part])


def tags_of(parts: Mapping[str, str]) -> Mapping[str, Any]:
    """What the parts of a file name say of its record beside what every one has."""
    return {key: typed(text) for key, text in parts.items() if key not in OWN_KEYS}


class FileNames:
    """Parses the names of the files of a dump, most of which differ in ``dump_index`` alone from one that was read."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[dict[str, str], Mapping[str, Any]]] = {}

    def parse(self, name: str) -> tuple[dict[str, str], Mapping[str, Any]]:
        """The parts of a name, as ``parse_file_name`` has them, and its tags, which several may share."""
        before, found, behind = name.partition(_INDEX)
        number, more, after = behind.partition(SEPARATOR)
        if not (found and more and before.startswith("step=")):
            parts = parse_file_name(name)
            return parts, tags_of(parts)
        known = self._known
        first, own = known.get(before) or self._remember(before)
        last, tags = known.get(after) or self._remember(after)
        return {**first, "dump_index": number, **last}, {**own, **tags} if own else tags

    def _remember(self, text: str) -> tuple[dict[str, str], Mapping[str, Any]]:
        parts = _parts(text.removesuffix(".pt"))
        found = self._known[text] = parts, tags_of(parts)
        return found


def build_file_name(parts: Mapping[str, Any]) -> str:
    """The name of the file with these parts, in their order.

    Raises ValueError for a part that no file name can hold.
    """
    name = SEPARATOR.join(f"{key}={value}" for key, value in parts.items()) + ".pt"
    if "/" in name or "\0" in name or len(name.encode()) > 255:
        raise ValueError(f"{name!r} cannot be the name of a file")
    return name


@functools.lru_cache(4096)
def typed(text: str) -> Any:
    """A value of a file name as Python meant it: integers, truth values and None; all else stays text."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    digits = text[1:] if text.startswith("-") else text
    return int(text) if digits.isascii() and digits.isdigit() and str(int(text)) == text else text


def load(path: Path, *, with_torch: bool = False) -> Content:
    """Read a file without unpickling anything beyond tensors and plain containers.

    Tensors are mapped, so that only what is looked at is read. ``with_torch`` makes all of them torch's. Raises
    PtFileError.
    """
    return content_of(_load_raw(path) if with_torch else _load_plain(path), path.name)


def content_of(raw: Any, name: str) -> Content:
    """The value and the metadata in what a file of this name holds. Raises PtFileError."""
    if isinstance(raw, dict) and "value" in raw:
        meta = raw.get("meta", {})
        if not isinstance(meta, dict):
            raise PtFileError(f"{name}: its 'meta' is a {type(meta).__name__}, not a dict")
        return Content(raw["value"], meta)
    return Content(raw, {})


def _load_plain(path: Path) -> Any:
    try:
        return load_plain(path).content
    except (Unknown, OSError):
        return _load_raw(path)


def _load_raw(path: Path) -> Any:
    import torch

    try:
        mapped = _is_zip(path)
        with warnings.catch_warnings():
            # torch warns of old pickle protocols, which its restricted reader then refuses or reads.
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = _refused_global(str(error))
        if wanted:
            raise PtFileError(
                f"{path.name}: it holds a {wanted}, and nothing but tensors and plain containers is unpickled"
            ) from None
        raise PtFileError(f"{path.name}: cannot be read: {_first_line(error)}") from None
    except OSError as error:
        raise PtFileError(f"{path.name}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # torch raises many types for damaged files
        raise PtFileError(f"{path.name}: cannot be read: {_first_line(error)}") from None


def _is_zip(path: Path) -> bool:
    """Whether a file is of torch's present format. Raises OSError when it is no regular file or cannot be read."""
    descriptor = open_to_read(path)
    try:
        return os.read(descriptor, 4) == b"PK\x03\x04"
    finally:
        os.close(descriptor)


def _refused_global(message: str) -> str | None:
    """The class that torch's message says it refused, if that is what the message is about."""
    for line in message.splitlines():
        for words in ("Unsupported global: GLOBAL ", "Unsupported class "):
            if words in line:
                return line.split(words, 1)[1].split()[0].rstrip(".,")
    return None


def _first_line(error: Exception) -> str:
    """The first sentence of what torch says; the rest is advice about checkpoints."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]


def is_tensor(value: Any) -> bool:
    """Whether a loaded value is a tensor."""
    if isinstance(value, StoredTensor):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def dtype_name(tensor: Any) -> str:
    """torch's name of a tensor's dtype without ``torch.``."""
    if isinstance(tensor, StoredTensor):
        return tensor.dtype
    return str(tensor.dtype).removeprefix("torch.")


def to_array(tensor: Any) -> npt.NDArray[Any]:
    """A tensor as numpy, bit for bit (``ml_dtypes`` for bf16 and fp8); strides are kept, memory is shared.

    Raises ValueError for tensors that are not plain (quantized, sparse).
    """
    if isinstance(tensor, StoredTensor):
        assert tensor.array is not None  # of a file that was loaded
        return tensor.array
    from dumper.values.dtypes import PACKED, numpy_dtype

    name = dtype_name(tensor)
    tensor = tensor.detach()
    if tensor.is_sparse or tensor.is_quantized:
        raise ValueError(f"a {'sparse' if tensor.is_sparse else 'quantized'} tensor cannot be read as an array")
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    wanted = numpy_dtype(name)
    as_bits = name in PACKED or name in ("bfloat16", "complex32") or name.startswith("float8")
    if wanted.kind in "fiubc" and not as_bits:
        array: npt.NDArray[Any] = tensor.numpy()
        return array
    import torch

    if name == "complex32":
        parts: npt.NDArray[Any] = torch.view_as_real(tensor).numpy()
        return parts
    bits = tensor.view(torch.int16 if wanted.itemsize == 2 else torch.uint8).numpy()
    return np.asarray(bits).view(wanted)


def parallel_layout(meta: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Every axis that the metadata of a file places its rank on: axis to ``(rank, size)``."""
    found: dict[str, tuple[int, int]] = {}
    for key in PARALLEL_KEYS:
        info = meta.get(key)
        if not isinstance(info, dict):
            continue
        for name, at in info.items():
            axis = name.removesuffix("_rank")
            size = info.get(f"{axis}_size")
            if name.endswith("_rank") and isinstance(at, int) and isinstance(size, int):
                found.setdefault(axis, (at, size))
    return found

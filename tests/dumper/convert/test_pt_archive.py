"""``.pt`` files that are written without torch: torch and SGLang's reader load what was saved, to the bit."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dumper.convert.pt_archive import PlainTensor, holds, save
from dumper.readers.sglang.plain_pt import BYTES_DTYPES, STORAGES, load_plain
from dumper.values.dtypes import numpy_dtype

DTYPES = sorted({*STORAGES.values(), *BYTES_DTYPES})
META = {"dims": "t h", "step": 300, "layer_id": -1, "names": ["a", ("é", None)], "on": {"tp_rank": 0, 2: 1.5}}


def random_array(dtype: str, shape: list[int], seed: int) -> Any:
    """Random bits."""
    kind = numpy_dtype(dtype)
    raw = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * kind.itemsize, np.uint8)
    return (raw & 1 if dtype == "bool" else raw).view(kind).reshape(shape)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**32), st.data())
def test_torch_loads_every_tensor_to_the_bit(
    tmp_path: Path, dtype: str, shape: list[int], seed: int, data: st.DataObject
) -> None:
    array = random_array(dtype, shape, seed).transpose(data.draw(st.permutations(range(len(shape)))))
    path = tmp_path / "x.pt"
    path.unlink(missing_ok=True)
    save(path, PlainTensor(dtype, array), META)
    for mapped in (False, True):
        found = torch.load(path, weights_only=True, mmap=mapped)
        tensor = found["value"]
        assert found["meta"] == META
        assert (tensor.dtype, tuple(tensor.shape)) == (getattr(torch, dtype), array.shape)
        assert tensor.is_contiguous()
        if array.size:
            assert tensor.untyped_storage().tolist() == list(np.ascontiguousarray(array).tobytes())
    plain = load_plain(path).content
    assert plain["meta"] == META
    assert plain["value"].dtype == dtype
    assert plain["value"].array.tobytes() == array.tobytes()


@pytest.mark.parametrize("value", ["text", [1, 2.5, None, {"a": (True, b"x")}], -(2**70)])
def test_plain_values_are_loaded(tmp_path: Path, value: Any) -> None:
    save(tmp_path / "x.pt", value, META)
    assert torch.load(tmp_path / "x.pt", weights_only=True) == {"value": value, "meta": META}


def test_the_archive_is_one_of_which_others_know_and_its_tensor_is_aligned(tmp_path: Path) -> None:
    # The last is written in blocks, the last of which is not whole.
    for number, (name, size) in enumerate([("a", 5), ("b" * 70, 5), ("c", 70_001)]):
        path = tmp_path / f"{number}.pt"
        save(path, PlainTensor("float32", np.arange(size, dtype=np.float32)), {"name": name})
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert archive.read("archive/data/0") == np.arange(size, dtype=np.float32).tobytes()
            assert archive.namelist()[0] == "archive/data.pkl"
            assert len(archive.namelist()) == 4
        assert load_plain(path).content["value"].start % 64 == 0


def test_what_is_left_to_torch_is_refused(tmp_path: Path) -> None:
    assert not holds("complex32", 8)
    assert not holds("bfloat16", 1 << 32)
    with pytest.raises(ValueError, match="int8"):
        save(tmp_path / "x.pt", PlainTensor("int8", np.zeros(1, np.float32)), {})
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(FileExistsError):
        save(tmp_path / "x.pt", "text", {})

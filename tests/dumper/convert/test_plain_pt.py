"""``.pt`` files that are read without torch: what torch reads, and nothing that it would not."""

from __future__ import annotations

import collections
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dumper.readers.sglang import plain_pt, pt_files, pt_format
from dumper.readers.sglang.plain_pt import StoredTensor, Told, Unknown, load_plain, read_again
from dumper.readers.sglang.pt_files import PtFileError
from dumper.readers.sglang.pt_format import COMPILED, _compiled, archive, reference

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


@pytest.fixture(autouse=True, params=["compiled", "reference"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything with the compiled module, and with what it is held against."""
    if request.param == "compiled" and not COMPILED:
        pytest.skip("the module is not compiled here")
    used = _compiled if request.param == "compiled" else reference
    of_archives = _compiled if request.param == "compiled" else archive
    for name in ("heads", "stamps", "part"):
        monkeypatch.setattr(pt_format, name, getattr(of_archives, name))
    monkeypatch.setattr(pt_format, "unpickle", used.unpickle)
    monkeypatch.setattr(plain_pt, "NAMES", names_of(used))


def names_of(module: Any) -> dict[bytes, Any]:
    """What a pickle may refer to, for one of both."""
    return plain_pt.names(module.named)


def load(content: Any, path: Path) -> Told:
    torch.save(content, path)
    return load_plain(path)


def plain(content: Any, path: Path) -> Any:
    return load(content, path).content


def same(found: StoredTensor, tensor: torch.Tensor) -> bool:
    assert found.array is not None
    assert found.dtype == str(tensor.dtype).removeprefix("torch.")
    assert found.shape == tuple(tensor.shape)
    if not tensor.numel():
        return True
    held = found.array.copy(order="C").reshape(-1).view(np.uint8).tobytes()
    # A tensor of one element is contiguous whatever its strides, which ``view`` does not take.
    expected = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    return held == expected.view(torch.uint8).numpy().tobytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_tensors_are_those_of_torch(tmp_path: Path, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(random.Random(data.draw(st.integers(0, 2**32))).randbytes(size), np.uint8)
    if dtype == torch.bool:
        raw = raw & 1
    base = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    tensor = base
    if shape and data.draw(st.booleans()):
        tensor = tensor.permute(data.draw(st.permutations(range(len(shape)))))
    if shape and tensor.shape[0] > 1 and data.draw(st.booleans()):
        tensor = tensor[1:]
    if shape and data.draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
    told = load({"value": tensor, "meta": {"dims": "t h", "of": base}}, tmp_path / "x.pt")
    found = told.content
    assert same(found["value"], tensor)
    if tensor.numel():
        again = read_again(tmp_path / "x.pt", found["value"], told.stamp)
        assert again is not None
        assert same(again, tensor)
    assert same(found["meta"]["of"], base)
    assert found["meta"]["dims"] == "t h"


PIECES = [
    b"(", b")", b"]", b"}", b"N", b"\x88", b"K\x07", b"M\x07\x01", b"J\xff\xff\xff\xff", b"\x8a\x02\xff\xfe",
    b"G\x3f\xf8\0\0\0\0\0\0", b"X\x02\0\0\0hi", b"ca\nb\n", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u",
    b"q\x01", b"h\x01", b"r\x01\0\0\0", b"j\x01\0\0\0", b"Q", b"R", b".",
]  # fmt: skip
"""Every instruction."""

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just(()),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLAIN)
def test_plain_values_are_those_of_torch(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "x.pt"
    torch.save({"value": value, "meta": {}}, path)
    found = pt_files.load(path).value
    assert found == value
    assert repr(found) == repr(torch.load(path)["value"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_damage_is_unknown_and_nothing_else(tmp_path: Path, random_: random.Random, changes: int) -> None:
    path = tmp_path / "x.pt"
    torch.save({"value": torch.arange(6.0), "meta": {"a": [1, 2.5, None, ("b", True)], "b": 2**70}}, path)
    data = bytearray(path.read_bytes())
    for _ in range(changes):
        data[random_.randrange(len(data))] = random_.randrange(256)
    damaged = tmp_path / "y.pt"
    damaged.write_bytes(data[: random_.choice([len(data), random_.randrange(len(data))])])
    try:
        load_plain(damaged)
    except Unknown:
        return


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02ctorch\nFloatStorage\n.",
        b"\x80\x02(.",
        b"\x80\x02NN.",
        b"\x80\x02h\x01.",
        b"\x80\x02r\xff\xff\xff\x7fN.",
        b"\x80\x02]q\x00h\x00a" + b"X\xff\xff\xff\xff.",
        b"\x80\x02]]s.",
        b"\x80\x02}]Ns.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00K\x01\x85K\x01\x85NNtR.",
        b"\x80\x04N.",
        b"",
    ],
)
def test_a_pickle_that_does_anything_else_is_unknown(tmp_path: Path, code: bytes) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", code)
    with pytest.raises(Unknown):
        load_plain(path)


@pytest.mark.parametrize("module", [reference, _compiled] if COMPILED else [reference])
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)), (6, (1,), (1,)), (0, (2,), (6,)), (-1, (1,), (1,)), (0, (3,), (-1,)), (0, (2, 2), (1,)),
        (0, (2**40, 2**40), (0, 0)), (0, (1,), (2**62,)), (0, (3, 2), (2**61, 2**62)), (2**64, (1,), (1,)),
        (0, [2], (1,)), (0.0, (1,), (1,)), (0, (True,), (1,)), (0, (1,) * 33, (1,) * 33),
    ],
)  # fmt: skip
def test_a_tensor_beyond_its_storage_is_unknown(module: Any, offset: Any, shape: Any, strides: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        module.unpickle(pickled_tensor(offset, shape, strides), names_of(module), {"0": (0, 24)}, StoredTensor)


@pytest.mark.parametrize("module", [reference, _compiled] if COMPILED else [reference])
@pytest.mark.parametrize("storages", [{}, {"0": (0, 20)}, {"0": (0, 28)}, {"1": (0, 24)}])
def test_a_storage_of_another_size_is_unknown(module: Any, storages: Any) -> None:
    code = pickled_tensor(0, (2, 3), (3, 1))
    found, tensors = module.unpickle(code, names_of(module), {"0": (100, 124)}, StoredTensor)
    assert tensors == [found]
    assert (found.dtype, found.shape, found.strides, found.start, found.stop) == ("float32", (2, 3), (12, 4), 100, 124)
    with pytest.raises((ValueError, KeyError)):
        module.unpickle(code, names_of(module), storages, StoredTensor)


def pickled_tensor(offset: Any, shape: Any, strides: Any) -> bytes:
    """A tensor of a storage of six numbers, without torch, which makes none of these."""
    number = [pickle.dumps(one, protocol=2)[2:-1] for one in (offset, shape, strides)]
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x06tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(number) + b"\x89}tR."


def test_a_large_tensor_is_found_again_until_the_file_changes(tmp_path: Path) -> None:
    tensor = torch.arange(100_000.0)
    told = load([torch.zeros(7), tensor[50_000:]], tmp_path / "x.pt")
    again = read_again(tmp_path / "x.pt", told.content[1], told.stamp)
    assert again is not None
    assert same(again, tensor[50_000:])
    torch.save([tensor], tmp_path / "x.pt")
    assert read_again(tmp_path / "x.pt", told.content[1], told.stamp) is None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.integers(0, 4), st.sampled_from([3, 2000]))
def test_both_find_the_same_in_damaged_files(tmp_path: Path, random_: random.Random, changes: int, many: int) -> None:
    """Of a file that is read at once, and of one that is read in pieces."""
    path = tmp_path / "x.pt"
    torch.save({"value": torch.arange(float(many)), "meta": {"a": 1}, "more": [torch.ones(2)] * (many // 100)}, path)
    data = bytearray(path.read_bytes())
    # Most bytes are those of the tensor.
    places = [random_.choice([random_.randrange(len(data)), -1 - random_.randrange(600)]) for _ in range(changes)]
    for place in places:
        data[place] = random_.randrange(256)
    path.write_bytes(data[: random_.choice([len(data), random_.randrange(len(data))])])
    missing = str(tmp_path / "missing.pt").encode()
    paths = [str(path).encode(), missing, str(tmp_path).encode()]
    found = [one.heads(paths) for one in ((archive, _compiled) if COMPILED else (archive,))]
    assert found[0] == found[-1]
    assert found[0][1:] == [None, None]
    stamps = [one.stamps(paths) for one in ((archive, _compiled) if COMPILED else (archive,))]
    assert stamps[0] == stamps[-1]
    assert [stamp is None for stamp in stamps[0]] == [False, True, False]


def test_a_part_of_a_file_is_read_while_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    name, missing = str(path).encode(), str(tmp_path / "missing").encode()
    for one in (archive, _compiled) if COMPILED else (archive,):
        (stamp,) = one.stamps([name])
        assert one.part(name, 10, 20, stamp) == bytes(range(10, 20))
        assert one.part(name, 90, 101, stamp) is None
        assert one.part(name, 10, 20, (99, *stamp[1:])) is None
        assert one.part(name, 10, 20, (*stamp[:2], stamp[2] + 1)) is None
        assert one.part(missing, 0, 1, stamp) is None
        assert one.part(str(tmp_path).encode(), 0, 1, stamp) is None
        with pytest.raises(ValueError):  # noqa: PT011 - no message is shown to anyone
            one.part(name, 20, 10, stamp)


def test_parts_of_files_are_read_together_but_for_those_that_changed(tmp_path: Path) -> None:
    names = []
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes(range(number, number + 20)))
        names.append(str(tmp_path / str(number)).encode())
    (tmp_path / "2").unlink()
    for one in (archive, _compiled) if COMPILED else (archive,):
        stamps = [stamp or (20, 0, 0) for stamp in one.stamps(names)]
        stamps[1] = (21, *stamps[1][1:])
        found, read = one.parts(tuple(names), (3, 3, 3, 15), 4, tuple(stamps))
        assert read == [True, False, False, True]
        assert found == bytes([3, 4, 5, 6, *8 * [0], 18, 19, 20, 21])
        assert one.parts((names[0],), (17,), 4, (stamps[0],)) == (bytes(4), [False])
        for wrong in (
            ((names[0],), (-1,), 4, (stamps[0],)),
            ((names[0],), (0,), 0, (stamps[0],)),
            ((names[0],), (), 4, ()),
        ):
            with pytest.raises(ValueError):  # noqa: PT011 - no message is shown to anyone
                one.parts(*wrong)


def test_an_archive_of_many_members_is_read(tmp_path: Path) -> None:
    tensors = [torch.full((2,), float(number)) for number in range(500)]
    found = plain({"value": tensors}, tmp_path / "x.pt")["value"]
    assert all(same(one, tensor) for one, tensor in zip(found, tensors, strict=True))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES)).map(lambda pieces: b"\x80\x02" + b"".join(pieces) + b"."))
def test_both_machines_take_the_same_pickles(code: bytes) -> None:
    found = []
    for one in (reference, _compiled) if COMPILED else ():
        try:
            found.append(repr(one.unpickle(code, {b"a\nb": one.named(6, None, 1)}, {}, StoredTensor)))
        except (IndexError, KeyError, TypeError, ValueError, struct.error):
            found.append("refused")
    assert len(set(found)) <= 1


def test_a_list_that_holds_itself_ends(tmp_path: Path) -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    found = plain(endless, tmp_path / "x.pt")
    assert found[1] is found


def test_what_torch_alone_reads_is_read_by_torch(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    conjugate = torch.tensor([1 + 2j]).conj()
    parameter = torch.nn.Parameter(torch.ones(2))
    old = tmp_path / "old.pt"
    torch.save(torch.ones(3), old, _use_new_zipfile_serialization=False)
    assert isinstance(pt_files.load(old).value, torch.Tensor)
    for number, value in enumerate((quantized, conjugate, torch.float32, torch.ones(2, dtype=torch.complex32))):
        path = tmp_path / f"{number}.pt"
        torch.save(value, path)
        with pytest.raises(Unknown):
            load_plain(path)
        assert type(pt_files.load(path).value) is type(value)
    assert same(plain(parameter, tmp_path / "parameter.pt"), parameter)
    assert plain(collections.OrderedDict(a=1), tmp_path / "ordered.pt") == {"a": 1}


def test_what_torch_refuses_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"value": pathlib_like()}, path)
    with pytest.raises(PtFileError, match="nothing but tensors and plain containers is unpickled"):
        pt_files.load(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(PtFileError):
        pt_files.load(path)


def pathlib_like() -> object:
    return Path("somewhere")

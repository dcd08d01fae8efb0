"""Tensors whose memory is not there, not theirs or less than they claim: the model goes on, and what cannot be read
is counted and named."""

from __future__ import annotations

import pytest

from tests.trust.conftest import Programs

pytestmark = pytest.mark.slow

SETUP = """
import torch

LEVEL = sys.argv[1]

class Wrapper(torch.Tensor):
    # Keeps its values in another tensor, as many subclasses do.
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
    def __init__(self, inner):
        self.inner = inner
    def __tensor_flatten__(self):
        return ["inner"], None
    @staticmethod
    def __tensor_unflatten__(tensors, context, size, stride):
        return Wrapper(tensors["inner"])
    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.detach.default:
            return Wrapper(arguments[0].inner)
        raise NotImplementedError(f"{function} of Wrapper")

def freed(elements):
    value = torch.randn(elements)
    value.untyped_storage().resize_(0)
    return value

def shrunk(elements, strided=False):
    value = torch.randn(elements * 2)[::2] if strided else torch.randn(elements)
    value.untyped_storage().resize_(64)
    return value

def fake(elements):
    from torch._subclasses import FakeTensorMode
    with FakeTensorMode():
        return torch.empty(elements)

def masked(elements):
    from torch.masked import masked_tensor
    return masked_tensor(torch.randn(elements), torch.ones(elements, dtype=torch.bool))

def two(elements):
    from torch.testing._internal.two_tensor import TwoTensor
    return TwoTensor(torch.randn(elements), torch.randn(elements))

def freed_nested():
    value = torch.nested.nested_tensor([torch.randn(2), torch.randn(3)])
    value.untyped_storage().resize_(0)
    return value

VALUES = {
    "storage resized to nothing": lambda: freed(100),
    "large storage resized to nothing": lambda: freed(1_000_000),
    "parameter whose storage is freed": lambda: torch.nn.Parameter(freed(100)),
    "storage smaller than the tensor": lambda: shrunk(2000),
    "large tensor with a small storage": lambda: shrunk(1_000_000),
    "strided tensor with a small storage": lambda: shrunk(2000, strided=True),
    "FakeTensor": lambda: fake(100),
    "large FakeTensor": lambda: fake(10_000_000),
    "MaskedTensor": lambda: masked(100),
    "TwoTensor": lambda: two(100),
    "large TwoTensor": lambda: two(100_000),
    "wrapper": lambda: Wrapper(torch.randn(100)),
    "sparse": lambda: torch.randn(3).to_sparse(),
    "nested and freed": freed_nested,
    "expanded beyond any memory": lambda: torch.zeros(1).expand(1 << 46),
}
"""


@pytest.mark.parametrize("level", ["full", "stats", "hash", "sample"])
def test_what_cannot_be_read_is_counted_and_nothing_breaks(torch_program: Programs, level: str) -> None:
    outcome = torch_program(
        SETUP
        + """
for name, make in VALUES.items():
    print(name, flush=True)
    dumper.dump(name, make(), level=LEVEL)
dumper.dump("honest", torch.arange(5))
print("the end")
dumper.close()
print(len(VALUES))
""",
        level,
    )
    assert outcome.returncode == 0, f"died after: {outcome.out}\n{outcome.err[-3000:]}"
    made = int(outcome.out.splitlines()[-1])
    run = outcome.run()
    # The first rows of what is large only by repetition are no burden.
    readable = ["expanded beyond any memory"] if level == "sample" else []
    assert [record.name for record in run.records] == [*readable, "honest"]
    made -= len(readable)
    assert run.losses == made
    # Said in words, for each.
    assert outcome.err.count("was not recorded: ") == made
    assert "Internal" not in outcome.err
    assert "Accessing the data pointer of FakeTensor" not in outcome.err


def test_a_storage_that_shrank_gives_no_foreign_memory(program: Programs) -> None:
    """Small tensors of one type and shape go a short way once the first of them was seen."""
    outcome = program("""
import torch
dumper.dump("x", torch.randn(2000))
shrunk = torch.randn(2000)
shrunk.untyped_storage().resize_(64)
dumper.dump("x", shrunk)
shifted = torch.randn(4000)[2000:]
shifted.untyped_storage().resize_(4 * 2000)
dumper.dump("x", shifted)
fits = torch.randn(4000)[1000:3000]
fits.untyped_storage().resize_(4 * 3000)
dumper.dump("x", fits)
""")
    assert outcome.returncode == 0, outcome.err
    run = outcome.run()
    assert len(run.records) == 2
    assert run.losses == 2
    assert "storage" in outcome.err


def test_subclasses_that_hold_their_own_values_are_recorded(torch_program: Programs) -> None:
    outcome = torch_program("""
import torch

class Named(torch.Tensor):
    pass

class Watched(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        raise RuntimeError("must not be asked")

dumper.dump("named", torch.arange(6.0).as_subclass(Named))
dumper.dump("buffer", torch.nn.Buffer(torch.arange(6.0)))
with torch._C.DisableTorchFunctionSubclass():
    watched = torch.arange(6.0).as_subclass(Watched)
dumper.dump("watched", watched)
dumper.dump("watched stats", watched, level="stats")
""")
    assert outcome.returncode == 0, outcome.err
    run = outcome.run()
    assert [record.name for record in run.records] == ["named", "buffer", "watched", "watched stats"], outcome.err
    assert all(record.array().tolist() == [0, 1, 2, 3, 4, 5] for record in run.records[:3])
    assert run.records[3].statistics["max"] == 5


def test_transforms_of_functions(torch_program: Programs) -> None:
    """Inside ``vmap`` and ``grad`` values are wrappers of torch's own type."""
    outcome = torch_program("""
import torch

def function(x):
    y = x * 2
    dumper.dump("y", y)
    dumper.dump("stats", y, level="stats")
    return y.sum()

assert torch.func.grad(function)(torch.ones(3)).tolist() == [2, 2, 2]
assert torch.vmap(function)(torch.ones(4, 3)).tolist() == [6, 6, 6, 6]
dumper.dump("functional", torch._to_functional_tensor(torch.ones(100)))
assert torch.func.jvp(function, (torch.ones(3),), (torch.ones(3),))[1] == 6
""")
    assert outcome.returncode == 0, outcome.err
    run = outcome.run()
    assert len(run.records) + run.losses == 7
    # What vmap stands for a whole batch with has no values of its own; all else has.
    assert run.losses == 2


def test_capture_in_memory_meets_the_same_values(torch_program: Programs) -> None:
    outcome = torch_program(
        SETUP
        + """
with dumper.capture() as records:
    for name, make in VALUES.items():
        dumper.dump(name, make())
    dumper.dump("honest", torch.arange(5))
assert [record.name for record in records] == ["honest"], records
""",
        "full",
    )
    assert outcome.returncode == 0, outcome.err[-3000:]
    assert outcome.err.count("was not recorded: ") >= 10

"""Levels ``stats`` and ``hash`` of CUDA tensors, on a stand-in: what the kernels leave in a slab becomes the record."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dumper.memory import device_reductions
from dumper.recording.graphs.handover import Handover
from dumper.recording.reductions import reduced_together
from dumper.values.device_kernels import launching
from tests.dumper.memory.stand_in_kernels import STREAM, VALUE, Kernels, OnDevice
from tests.dumper.recording.conftest import Recording


@pytest.mark.parametrize("level", ["stats", "hash"])
def test_a_record_is_that_of_the_same_values_on_the_host(recording: Recording, kernels: Kernels, level: str) -> None:
    recorder = recording.start(level=level)
    recorder.dump("host", VALUE)
    value = VALUE.clone()
    for _ in range(3):
        recorder.dump("device", OnDevice(value))
    # What the model does next, on its stream.
    kernels.runtime.overwrite(value, bytes(value.nbytes), STREAM)
    recorder.dump("zeros", OnDevice(value))
    host, *device, zeros = recording.read().records
    assert kernels.launched == [level] * 4
    assert len(kernels.scratch) == 1
    assert [record.level for record in device] == [level] * 3
    assert {(record.dtype, record.shape) for record in device} == {("float32", (10, 100))}
    kept = "fingerprint" if level == "hash" else "statistics"
    assert {str(getattr(record, kept)) for record in device} == {str(getattr(host, kept))}
    assert getattr(zeros, kept) != getattr(host, kept)
    assert len({record.fingerprint_scheme for record in (host, *device)}) == 1


@pytest.mark.parametrize("level", ["stats", "hash"])
def test_values_of_a_graph_are_reduced_together(recording: Recording, kernels: Kernels, level: str) -> None:
    recorder = recording.start(level=level)
    values = [VALUE, VALUE.view(-1)[:7].clone(), torch.ones(3, 5)]
    for number, value in enumerate(values):
        recorder.dump(f"x{number}", value)
    session: Any = recorder._open.session
    plans = [plan for plan in session._plans.values() if plan.source.name.startswith("x")]
    together = reduced_together(level, [(plan, OnDevice(value)) for plan, value in zip(plans, values, strict=True)])
    handover = Handover(session._writer, session._stager, session.status, session._next_number, session._reduced)
    assert [handover.reduce(together, None) for _ in range(2)] == [True, True]
    kernels.error = RuntimeError("an example")
    assert not handover.reduce(together, None)
    run = recording.read()
    assert kernels.launched == [level] * 6
    kept = "fingerprint" if level == "hash" else "statistics"
    for number in range(3):
        host, *replays = (record for record in run.records if record.name == f"x{number}")
        assert [str(getattr(record, kept)) for record in replays] == [str(getattr(host, kept))] * 2
        assert {record.shape for record in replays} == {host.shape}


def test_what_kernels_cannot_read_goes_another_way(recording: Recording, kernels: Kernels) -> None:
    """Types and places that no kernel reads are copied, and fingerprinted on the host."""
    recorder = recording.start(level="hash")
    recorder.dump("host", VALUE)
    way = recorder._open.session._short_way
    for value in (OnDevice(VALUE.t()), OnDevice(VALUE.view(-1)[1:])):
        assert not way.submit(next(iter(recorder._open.session._plans.values())), value, None)
    assert not kernels.launched


def test_statistics_of_types_that_no_kernel_reads_go_another_way(recording: Recording, kernels: Kernels) -> None:
    """And not as all of their bytes."""
    recorder = recording.start(level="stats")
    recorder.dump("host", VALUE)
    session: Any = recorder._open.session
    (plan,) = session._plans.values()
    for _ in range(2):
        assert not session._short_way.submit(plan, OnDevice(VALUE.to(torch.complex64)), None)
    assert len(recording.read().records) == 1


@pytest.mark.parametrize("level", ["full", "sample(rows=3)", "sample(rows=30)", "sample(stride=4)"])
@pytest.mark.parametrize("view", [slice(None), slice(10, 30)], ids=["contiguous", "some columns"])
def test_rows_are_copied_from_where_they_are(recording: Recording, kernels: Kernels, level: str, view: slice) -> None:
    recorder = recording.start(level=level)
    recorder.dump("host", VALUE[:, view])
    value = VALUE.clone()
    for _ in range(2):
        recorder.dump("device", OnDevice(value[:, view]))
    kernels.runtime.overwrite(value, bytes(value.nbytes), STREAM)
    host, *device = recording.read().records
    assert len(device) == 2
    for record in device:
        assert (record.shape, record.sampled_rows) == (host.shape, host.sampled_rows)
        assert record.array().tolist() == host.array().tolist()


def test_while_a_nan_is_waited_for_values_are_looked_at(recording: Recording, kernels: Kernels) -> None:
    recorder = recording.start(level='hash if name != "stats"; stats', on_nan=1)
    recorder.dump("host", VALUE)
    value, nan = OnDevice(VALUE.clone()), OnDevice(torch.full((5,), float("nan")))
    recorder.dump("hash", value)
    recorder.dump("stats", value)
    assert kernels.launched == ["stats"]
    recorder.dump("stats", nan)
    host, hashed, *_ = recording.read().records
    assert hashed.fingerprint == host.fingerprint


def test_a_kernel_that_cannot_be_launched_is_given_up_once(
    recording: Recording, kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = recording.start(level="hash")
    recorder.dump("host", VALUE)
    session: Any = recorder._open.session
    plan = next(iter(session._plans.values()))
    kernels.error = RuntimeError("Triton Error [CUDA]: an example")
    for _ in range(3):
        assert not session._short_way.submit(plan, OnDevice(VALUE.clone()), None)
    kernels.error = None
    assert not session._short_way.submit(plan, OnDevice(VALUE.clone()), None)
    assert not kernels.launched
    assert len([one for one in caplog.records if "an example" in one.getMessage()]) == 1
    recording.close()
    assert session._writer._reserved == 0


def test_scratch_is_cleared_once(kernels: Kernels) -> None:
    reductions = device_reductions.DeviceReductions(kernels.runtime, False)
    for _ in range(2):
        reductions.writer("hash", OnDevice(VALUE), 0, STREAM)  # type: ignore[arg-type]
    (address,) = reductions._scratch.values()
    assert len(kernels.runtime.memory[address]) == launching.SCRATCH_BYTES

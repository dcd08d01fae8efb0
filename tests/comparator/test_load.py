"""Files that change while a comparison reads them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from comparator import compare
from comparator.align.load import PendingCheck
from dumper import open_run
from dumper.recording.recorder import Recorder


def test_a_file_that_is_cut_after_it_was_opened_is_an_error_that_names_it(tmp_path: Path):
    for name in ("a", "b"):
        recorder = Recorder()
        recorder.configure(enable=True, dir=str(tmp_path), run=name, control=False)
        recorder.step()
        for layer in range(2):
            recorder.dump("hidden", torch.ones(64, 64), dims="t h", layer_id=layer)
        recorder.close()
    baseline, target = open_run(tmp_path / "a"), open_run(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")  # a file that is deleted stays as long as it is mapped
    os.truncate(next((tmp_path / "b").glob("*.msgpack")), 8192)
    for record in target.select(name="hidden"):
        assert not record.is_intact()
    found = [str(one) for one in compare(baseline, target)]
    assert len(found) == 2
    assert all("errored" in one.lower() and "was cut while it was read" in one for one in found), found


def test_a_large_record_that_is_damaged_is_one_also_where_both_sides_were_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    value = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    values = {"a": value, "b": value, "other": value * 1.0625}
    for name, recorded in values.items():
        recorder = Recorder()
        recorder.configure(enable=True, dir=str(tmp_path), run=name, control=False)
        recorder.step()
        recorder.dump("hidden", recorded, dims="t h")
        recorder.close()
    checked: list[PendingCheck] = []
    finish = PendingCheck.finish
    monkeypatch.setattr(PendingCheck, "finish", lambda check, *of: checked.append(check) or finish(check, *of))
    assert compare(tmp_path / "a", tmp_path / "b").passed
    assert len(checked) == 1  # and with the same bytes the other
    assert not compare(tmp_path / "a", tmp_path / "other").passed
    assert len(checked) == 5  # what fails is measured once more, in detail
    monkeypatch.undo()
    good = {name: next((tmp_path / name).glob("*.msgpack")).read_bytes() for name in values}
    for target, sides in (("b", "a"), ("b", "b"), ("b", "ab"), ("other", "a"), ("other", ("other",))):
        for name, data in good.items():
            damaged = bytearray(data)
            raw = values[name].view(torch.uint8).numpy().tobytes()
            damaged[data.index(raw) + 999_999] ^= 1 if name in sides else 0
            next((tmp_path / name).glob("*.msgpack")).write_bytes(damaged)
        for threads in (1, 2):
            monkeypatch.setattr("comparator.pipeline.threads_of", lambda *_, threads=threads: threads)
            (found,) = compare(tmp_path / "a", tmp_path / target)
            assert "do not match their checksum" in str(found), (target, sides, threads)


def test_memory_of_a_mapped_payload_is_given_back_and_its_values_stay(tmp_path: Path):
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(tmp_path), run="a", control=False)
    recorder.dump("hidden", torch.arange(1 << 20, dtype=torch.float32), dims="t")
    recorder.close()
    record = next(iter(open_run(tmp_path / "a").select(name="hidden")))
    array = record.array()
    assert array.sum() > 0
    before = _mapped_kilobytes()
    record.let_go(1 << 20, 3 << 20)
    assert before - 2200 <= _mapped_kilobytes() <= before - 1500
    record.let_go()
    assert _mapped_kilobytes() <= before - 3000
    assert array[-1] == (1 << 20) - 1


def _mapped_kilobytes() -> int:
    """Of files, in the memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))

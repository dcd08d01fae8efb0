"""Files of runs that the workers of a cluster look at: the run is the one that is opened here."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch

from comparator.cli import main
from comparator.elsewhere import OpenedAgain, on_cluster
from comparator.engine.cluster_connection import connected
from comparator.engine.cluster_files import FilesOnCluster
from comparator.errors import ComparatorError
from comparator.pipeline import begin
from dumper.format.frames import FOOTER_BYTES
from dumper.format.layouts import encode_layout
from dumper.readers.sglang import facts
from dumper.readers.streams import elsewhere, segments
from dumper.reading.open import open_run
from dumper.reading.protocol import Run
from dumper.storage.places import Place
from testbed.ray_cluster import Cluster
from testbed.sparse_runs import Sparse, write_sparse_run
from tests.comparator.cluster.conftest import in_the_middle, prepared_of, record
from tests.dumper.convert.dumps import DumpWriter
from tests.moto_server import upload


@pytest.fixture(scope="module")
def many_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 files, one of them without its end, one of something else, one empty, one that cannot be read."""
    run = write_sparse_run(tmp_path_factory.mktemp("many") / "run", Sparse(data=8, tensor=8, layers=2, steps=3))
    os.truncate(run / "rank-00003.msgpack", (run / "rank-00003.msgpack").stat().st_size - FOOTER_BYTES)
    (run / "rank-00004.msgpack").write_bytes(b"something else")
    (run / "rank-00005.msgpack").write_bytes(b"")
    (run / "rank-00006.msgpack").unlink()
    (run / "rank-00006.msgpack").symlink_to(run / "nowhere")
    return run


def told(run: Run) -> list[Any]:
    """All that is known of a run without a payload."""
    layouts = [run.layout(step, rank) for rank in run.ranks for step in run.steps]
    return [
        run.ranks,
        run.steps,
        {rank: msgspec.to_builtins(header, str_keys=True) for rank, header in run.headers.items()},
        run.problems,
        run.taps,
        [(one.rank, one.source, one.name, one.tags, one.step, one.shape, one.nbytes) for one in run.records],
        [layout and encode_layout(layout) for layout in layouts],
        run.world_size,
        run.losses,
    ]


def looking_here(function: Any, places: Sequence[Place]) -> Any:
    """``Workers`` without any."""
    return iter(function(places))


def test_a_run_that_others_look_at_is_the_run(many_ranks: Path) -> None:
    assert told(open_run(many_ranks, workers=looking_here)) == told(open_run(many_ranks))


def test_a_file_that_has_grown_since_it_was_looked_at_is_looked_at_here(tmp_path: Path) -> None:
    run = write_sparse_run(tmp_path / "run", Sparse(data=1, tensor=2, layers=1, steps=2))
    shutil.copytree(run, tmp_path / "more")
    later = write_sparse_run(tmp_path / "later", Sparse(data=1, tensor=2, layers=1, steps=4))
    expected = told(open_run(later))

    def replaced_meanwhile(function: Any, places: Sequence[Place]) -> Any:
        found = function(places)
        for place in places:
            shutil.copy(later / place.name, str(place))
        return iter(found)

    assert told(open_run(run, workers=replaced_meanwhile))[5:] == expected[5:]


def who_looks(places: Sequence[Place]) -> list[int]:
    return [os.getpid()] * len(places)


def nobody_but(process: int, places: Sequence[Place]) -> list[OSError | int]:
    there = os.getpid() != process
    return [FileNotFoundError(errno.ENOENT, "No such file or directory") if there else 1 for _ in places]


@pytest.mark.slow
def test_the_files_of_64_ranks_are_read_by_the_workers(
    cluster: Cluster, many_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    expected, files = told(open_run(many_ranks)), sorted(many_ranks.glob("rank-*.msgpack"))
    assert len(files) == 64
    with connected(cluster.address):
        looked = list(FilesOnCluster()(who_looks, files))
        assert len(looked) == 64
        assert os.getpid() not in looked
        with pytest.raises(ComparatorError, match=r"cannot read .*rank-00000.*same path on all machines"):
            list(FilesOnCluster(1)(partial(nobody_but, os.getpid()), files))
        # What cannot be read there is looked at here, for what is said of it.
        monkeypatch.setattr(elsewhere, "find_frames", lambda *_: pytest.fail("a file was looked at here"))
        monkeypatch.setattr(segments, "find_frames", lambda *_: pytest.fail("a file was looked at here"))
        monkeypatch.setattr(segments.Segment, "frame", lambda *_: pytest.fail("a frame was read here"))
        assert told(open_run(many_ranks, workers=FilesOnCluster())) == expected


@pytest.mark.slow
def test_runs_in_a_bucket(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each worker reads them itself, with the credentials of its own environment; one is killed in the middle."""
    places = [upload(run, run.name) for run in record(tmp_path, steps=2, layers=30)]
    assert main([*places, "--jobs", "1", "--output-format", "json"]) == 1
    here = capfd.readouterr().out
    assert main([*places, "--engine", "ray", "--address", cluster.address, "--output-format", "json"]) == 1
    there, said = capfd.readouterr()
    assert there == here
    assert "secret" not in there + said
    prepared = prepared_of(*places)
    killed: list[psutil.Process] = []

    def kill() -> None:
        killed.append(cluster.workers()[0])
        killed[0].kill()

    with connected(cluster.address):
        shared = on_cluster(prepared).begin
        assert isinstance(shared, OpenedAgain)
        assert shared.processes == 2, "that share the memory of the machine"
        found = list(begin(prepared, in_the_middle(kill), engine=on_cluster(prepared)))
    assert killed
    assert found == list(begin(prepared_of(*places)))


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SGLang's files: tensors, values, one that torch reads, one that nobody reads."""
    folder = tmp_path_factory.mktemp("dump")
    writer = DumpWriter(folder)
    for step in range(40):
        for rank in range(2):
            writer.write(step, rank, "x", torch.arange(100.0) + step, layer_id=3)
    writer.write(0, 0, "ids", [1, 2])
    writer.write(0, 1, "sparse", torch.eye(3).to_sparse())
    writer.write(0, 1, "damaged", torch.zeros(3)).write_bytes(b"PK")
    return folder


def told_of_dump(run: Run) -> list[Any]:
    records = [(one.source, one.dtype, one.shape, one.dims, one.error, one.nbytes) for one in run.records]
    return [records, run.headers, run.problems, run.changed_files]


def test_a_dump_that_others_look_at_is_the_dump(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = told_of_dump(open_run(dump))
    run = open_run(dump, workers=looking_here)
    monkeypatch.setattr(facts, "_read", lambda paths: pytest.fail("a file was looked at here"))
    assert [record.dtype for record in run.select(name="x")] == ["float32"] * 80
    monkeypatch.undo()
    assert told_of_dump(run) == expected
    for one in run.select(name="x", step=7):
        assert one.is_intact()
        assert one.array()[3] == 10


@pytest.mark.slow
def test_a_dump_is_read_by_the_workers(cluster: Cluster, dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = told_of_dump(open_run(dump))
    with connected(cluster.address):
        run = open_run(dump, workers=FilesOnCluster())
    monkeypatch.setattr(facts, "_read", lambda paths: pytest.fail("a file was looked at here"))
    assert [record.dtype for record in run.select(name="x")] == ["float32"] * 80
    monkeypatch.undo()
    assert told_of_dump(run) == expected


@pytest.mark.slow
def test_through_rays_client(cluster: Cluster, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """As from a laptop: this process is not on the cluster, and goes through the one port of its head."""
    if cluster.client_address is None:
        pytest.skip("Ray's client needs grpcio, which is not installed; pip install 'ray[client]'")
    printed = []
    for engine in (["--jobs", "1"], ["--engine", "ray", "--address", cluster.client_address]):
        assert main([*map(str, runs), *engine, "--output-format", "json"]) == 1
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]

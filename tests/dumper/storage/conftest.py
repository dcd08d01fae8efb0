from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from dumper.adapters.protocol import Process
from dumper.recording.recorder import Recorder
from dumper.storage import buckets
from testbed.object_store import ObjectStore

RANKS, STEPS, LAYERS = 2, 3, 4


def record(path: Path, *, changed: int | None = None, rows: int = 4) -> Path:
    """A run of two ranks; ``changed`` is the layer whose values are others."""
    for rank in range(RANKS):
        place = Process(rank, RANKS, {"tp": (rank, RANKS)}, {"test": "1"}, None)
        with mock.patch("dumper.recording.session.describe_process", return_value=place):
            _record_rank(path, changed, rows)
    return path


def _record_rank(path: Path, changed: int | None, rows: int) -> None:
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(path.parent), run=path.name, control=False)
    for step in range(STEPS):
        with recorder.step():
            for layer in range(LAYERS):
                value = torch.arange(rows * 64, dtype=torch.float32).reshape(rows, 64) + 1000 * step + layer
                value = value * 3 if layer == changed else value
                recorder.dump("x", value, dims="t h # tp:replicated", layer_id=layer)
    recorder.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server with the bucket ``runs``, in which ``a`` and ``b`` are equal and ``c`` is not."""
    root = tmp_path_factory.mktemp("objects")
    for name, changed in (("a", None), ("b", None), ("c", 2)):
        record(root / "runs" / name, changed=changed)
    with ObjectStore(root).running() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server, in good health and with the right credentials in the environment. What fails is retried at once."""
    server.reset()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    quick = {"max_retries": 2, "backoff": {"init_backoff": buckets.datetime.timedelta(milliseconds=1), "base": 2}}
    monkeypatch.setattr(buckets, "RETRIES", quick)
    return server

"""Tensors that Megatron-core hands out by itself. It is not installed here: a module of the same form stands for it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dumper import open_run
from dumper.adapters.megatron_observation import dims_of
from dumper.recording.recorder import Recorder
from dumper.settings import Settings
from tensortap.dims import parse_dims


class Observation(types.ModuleType):
    """Hands a tensor to whoever observes its kind."""

    observer: Callable[..., None] | None = None
    kinds: frozenset[str] = frozenset()

    @contextmanager
    def capture_tensor_observations(self, observer: Callable[..., None], kinds: frozenset[str]) -> Iterator[None]:
        self.observer, self.kinds = observer, kinds
        yield
        self.observer = None

    def hand_out(self, owner: object, name: str, tensor: Any, *dimensions: int | None) -> None:
        if self.observer is not None and name in self.kinds:
            self.observer(owner, name, name, tensor, *dimensions)


@pytest.fixture
def megatron(monkeypatch: pytest.MonkeyPatch) -> Observation:
    module = Observation("megatron.core.tensor_observation")
    for name in ("megatron", "megatron.core"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_what_is_handed_out_is_recorded_with_dims(megatron: Observation, tmp_path: Path) -> None:
    recorder = Recorder(
        Settings().changed(enable=True, dir=str(tmp_path), run="run", control=False, parallel={"tp": (0, 2)})
    )
    layer, head = types.SimpleNamespace(layer_number=3), types.SimpleNamespace()
    residual, logits = torch.randn(4, 2, 8), torch.randn(4, 2, 16)
    megatron.hand_out(layer, "residual", residual, 0)
    with recorder.observe_megatron():
        megatron.hand_out(layer, "residual", residual, 0, 0, 1)
        megatron.hand_out(head, "logits", logits, 2)
        megatron.hand_out(layer, "replicated", residual, None, 0, 1)
        megatron.hand_out(layer, "later", residual, None, 0, 1, "something new")
        megatron.hand_out(layer, "nothing", None, None)
    with recorder.observe_megatron({"logits"}):
        megatron.hand_out(layer, "residual", residual, 0)
        megatron.hand_out(head, "logits", logits, 2)
    recorder.close()
    run = open_run(tmp_path / "run")
    assert [(record.name, record.tags, record.dims) for record in run.records if record.kind == "tensor"] == [
        ("residual", {"layer_id": 2}, "s[tp] b h"),
        ("logits", {}, "d0 d1 d2[tp]"),
        ("replicated", {"layer_id": 2}, "s b h # tp:replicated"),
        ("later", {"layer_id": 2}, "s b h # tp:replicated"),
        ("logits", {}, "d0 d1 d2[tp]"),
    ]
    assert torch.equal(run.records[0].tensor(), residual)


def test_without_observation_the_error_says_so() -> None:
    with pytest.raises(ImportError, match="megatron"), Recorder(Settings()).observe_megatron():
        pass


@pytest.mark.parametrize(
    ("arguments", "dims"),
    [
        ((3, 0, 0, 1, 2), "s[cp:zigzag,tp] b h"),
        ((3, 2, 0, 1, 1), "s b h[tp]"),
        ((4, 2, 0, 1, 1), "s b d2[tp] d3"),
        ((2, None, 0, None, 2), "s[cp:zigzag] h # tp:replicated"),
        ((1, None, None, None, 1), "d0 # tp:replicated"),
    ],
)
def test_dims(arguments: tuple[Any, ...], dims: str) -> None:
    assert dims_of(*arguments) == dims
    assert len(parse_dims(dims).dimensions) == arguments[0]

"""What taps have torch do beside the model: nothing while recording is off, and nothing for values as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dumper.recording.recorder import Recorder


class Operators(TorchDispatchMode):
    """Notes the operators that torch is asked for, each of which would launch a kernel on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operators(call: Callable[[], object]) -> list[str]:
    with Operators() as found:
        call()
    return found.names


def test_taps_have_torch_do_nothing_more(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.configure(control=False, dir=str(tmp_path), run="r")
    infos = ({"id": "m.f#1:h", "name": "h", "kind": "dump", "target": "m.f", "file": "m.py", "line": 1},)
    (tap,) = recorder.install_taps("m", infos, {})
    x, weights = torch.randn(16, 64), [torch.randn(64, 64) for _ in range(3)]

    def plain() -> torch.Tensor:
        h = x
        for weight in weights:
            h = torch.relu(h @ weight)
        return h

    def tapped() -> torch.Tensor:
        h = x
        recorder.step()
        for layer, weight in enumerate(weights):
            h = torch.relu(h @ weight)
            if tap.on:
                tap.record(h, "t h", layer_id=layer)
            recorder.dump("h", h, layer_id=layer)
        recorder.end_step()
        return h

    alone = operators(plain)
    assert len(alone) == 2 * len(weights)
    assert operators(tapped) == alone
    recorder.configure(enable=True)
    for _ in range(2):
        tapped()
    assert operators(tapped) == alone
    recorder.configure(filter='name == "other"')
    tapped()
    assert operators(tapped) == alone
    recorder.close()

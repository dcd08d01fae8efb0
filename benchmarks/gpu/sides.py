"""What is measured side by side: the model alone, with taps at each level, and with what else writes tensors."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.decoder import Decoder, Put, infos
from dumper import open_run
from dumper.recording.recorder import Recorder
from dumper.recording.taps import Tap
from dumper.settings import Settings

NOTHING = 'name == ""'
"""The filter under which a graph is captured."""


class Side:
    """Steps of the model alone; the others do more."""

    def __init__(self, name: str, step: Callable[[torch.Tensor], object]) -> None:
        self.name = name
        self._step = step
        self.error: str | None = None

    def begin(self) -> None:
        """Before a block of steps; not timed."""

    def step(self, x: torch.Tensor) -> None:
        self._step(x)

    def call(self, x: torch.Tensor) -> None:
        """Record one value, where this records anything."""

    def flush(self) -> None:
        """Until all is in the file."""

    def end(self) -> None:
        """After a block; not timed. Raises where less was recorded than should be."""


class Recording(Side):
    """With taps. ``enable=False``: they are there and off."""

    def __init__(
        self, name: str, folder: Path, step: Callable[[torch.Tensor, tuple[Tap, ...]], object], **settings: Any
    ):
        super().__init__(name, lambda x: step(x, self.taps))
        self._folder = folder / name.replace(" ", "-").replace(",", "")
        self._on = settings.pop("enable", True)
        self._blocks = 0
        self.recorder = Recorder(Settings(control=False))
        self.recorder.configure(dir=str(self._folder), run="run-0", **settings)
        self.taps = self.recorder.install_taps("decoder", infos(), {})

    def begin(self) -> None:
        if self._on:
            self._blocks += 1
            self.recorder.configure(enable=True, filter=None, run=f"run-{self._blocks}")

    def step(self, x: torch.Tensor) -> None:
        self.recorder.step()
        super().step(x)

    def call(self, x: torch.Tensor) -> None:
        tap = self.taps[0]
        if tap.on:
            try:
                tap.record(x, "t h", layer_id=3)
            except Exception:
                tap.failed()

    def flush(self) -> None:
        self.recorder.flush()

    def end(self) -> None:
        if not self._on:
            return
        path = self.recorder.settings.run_path
        self.recorder.close()
        self.recorder.configure(enable=False)
        run = open_run(path)
        lost, recorded = run.losses, len(run.records)
        shutil.rmtree(self._folder, ignore_errors=True)
        if lost or not recorded:
            raise RuntimeError(f"{lost} values were lost, {recorded} recorded")


class Other(Side):
    """Another function at the same places."""

    def __init__(self, name: str, decoder: Decoder, put: Put, clean_up: Callable[[], None]) -> None:
        super().__init__(name, lambda x: decoder.with_calls(x, put))
        self._put = put
        self._clean_up = clean_up

    def call(self, x: torch.Tensor) -> None:
        self._put("attn_output", x, 3)

    def end(self) -> None:
        self._clean_up()


def eager_sides(decoder: Decoder, memory: Path, disk: Path, peer: Path | None) -> list[Side]:
    """``memory``, ``disk``: folders on such file systems; ``peer``: a folder with SGLang's package, as its wheel has
    it."""

    def taps(name: str, folder: Path = memory, **settings: Any) -> Side:
        return Recording(name, folder, decoder.tapped, **settings)

    sides = [
        Side("no taps", decoder.plain),
        taps("off", enable=False),
        taps("stats", level="stats"),
        taps("hash", level="hash"),
        taps("sample", level="sample(rows=8)"),
        taps("full"),
        taps("full, disk", disk),
        Other("x.cpu()", decoder, *_to_host(decoder.size.taps)),
        Other("torch.save", decoder, *_to_files(memory / "saved")),
    ]
    if peer is not None:
        sides.append(Other("SGLang's dumper", decoder, *_sglang_dumper(peer, memory / "sglang")))
    return sides


def indirect_sides(decoder: Decoder, memory: Path) -> list[Side]:
    """The levels again, without the setting ``direct_launch``."""
    levels = {"stats": "stats", "hash": "hash", "sample": "sample(rows=8)", "full": "full"}
    return [
        Recording(f"{name}, by the runtime", memory / "indirect", decoder.tapped, level=level, direct_launch=False)
        for name, level in levels.items()
    ]


def graph_sides(decoder: Decoder, rows: int, memory: Path) -> list[Side]:
    """The same pass as a CUDA graph, without taps and with them."""
    x = decoder.input(rows)

    def captured(forward: Callable[[torch.Tensor], object]) -> torch.cuda.CUDAGraph:
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            forward(x)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            forward(x)
        return graph

    alone = captured(decoder.plain)
    sides = [Side("no taps", lambda _: alone.replay())]
    for level in ("stats", "hash", "full"):
        graph: list[torch.cuda.CUDAGraph] = []
        side = Recording(level, memory / f"graph-{rows}", lambda _, __, g=graph: g[0].replay(), level=level)
        side.recorder.configure(enable=True, filter=NOTHING)
        graph.append(captured(lambda one, taps=side.taps: decoder.tapped(one, taps)))
        side.recorder.close()
        side.recorder.configure(enable=False)
        sides.append(side)
    return sides


def _to_host(most: int) -> tuple[Put, Callable[[], None]]:
    kept: list[torch.Tensor] = []

    def put(name: str, value: torch.Tensor, layer: int) -> None:
        kept.append(value.cpu())
        if len(kept) >= most:
            kept.clear()

    return put, kept.clear


def _to_files(folder: Path) -> tuple[Put, Callable[[], None]]:
    folder.mkdir(parents=True)
    files: list[Path] = []

    def put(name: str, value: torch.Tensor, layer: int) -> None:
        files.append(folder / f"{len(files)}.pt")
        torch.save(value.cpu(), files[-1])

    def clean_up() -> None:
        while files:
            files.pop().unlink()

    return put, clean_up


def _sglang_dumper(package: Path, folder: Path) -> tuple[Put, Callable[[], None]]:
    """SGLang's own dumper, without the rest of SGLang, which it imports for its server."""
    for name in ("sglang", "sglang.srt", "sglang.srt.managers", "sglang.srt.debug_utils"):
        parent = types.ModuleType(name)
        parent.__path__ = [str(package.joinpath(*name.split(".")))]
        sys.modules[name] = parent

    def unset(*_: object, **__: object) -> None:
        raise ValueError("this process is no server")

    stand_ins = {
        "zmq": {"Context": object, "Socket": object},
        "sglang.srt.managers.io_struct": dict.fromkeys(("sock_recv", "sock_send", "wrap_as_pickle")),
        "sglang.srt.runtime_context": dict.fromkeys(("get_parallel", "get_server_args", "get_serving"), unset),
        "sglang.srt.utils": {"get_device": lambda: "cuda" if torch.cuda.is_available() else "cpu"},
    }
    for name, attributes in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        sys.modules.setdefault(name, module)
    from sglang.srt.debug_utils.dumper import DumperConfig, _Dumper

    theirs = _Dumper(config=DumperConfig(enable=True, dir=str(folder), exp_name="run", enable_output_console=False))
    theirs.step()

    def put(name: str, value: torch.Tensor, layer: int) -> None:
        theirs.dump(name, value, dims="t h", layer_id=layer)

    def clean_up() -> None:
        files = list(folder.rglob("*.pt"))
        for file in files:
            file.unlink()
        if not files:
            raise RuntimeError("SGLang's dumper wrote nothing")

    return put, clean_up

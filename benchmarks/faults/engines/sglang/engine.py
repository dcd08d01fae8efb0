"""Records real SGLang servers: one server for each layout, one recording after the other while it runs.

All of them are forked from one process that has imported SGLang, which is most of what a server costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from benchmarks.faults.engines.protocol import Job
from benchmarks.faults.engines.serving import CONCURRENT, PROMPTS, Switch, record_by_server, record_while_serving
from benchmarks.faults.engines.sglang.checkpoints import CLASSES, CONFIG_OF, checkpoint
from benchmarks.faults.prompts import make_prompts
from testbed.paths import CONFIGS
from testbed.servers import cores_of_ranks, sglang_server, warm_servers
from testbed.warm import WarmLauncher

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Layout:
    """How a server is started."""

    flags: tuple[str, ...] = ()
    radix_cache: bool = False
    environment: tuple[tuple[str, str], ...] = ()


LAYOUTS = {
    "tp1": Layout(),
    "tp2": Layout(("--tp", "2")),
    "tp4": Layout(("--tp", "4")),
    "dp2": Layout(("--tp", "2", "--dp", "2", "--enable-dp-attention")),
    "tp1-chunk": Layout(("--chunked-prefill-size", "32")),
    "tp2-radix": Layout(("--tp", "2"), radix_cache=True),
    "pp2": Layout(("--pp-size", "2"), environment=(("SGLANG_CPU_OMP_THREADS_BIND", cores_of_ranks(2)),)),
}


class SGLang:
    """A family is a model, a variant is a layout, with requests one after the other or all at once."""

    name = "sglang"

    def families(self) -> tuple[str, ...]:
        return tuple(CLASSES)

    def variants(self, family: str) -> tuple[str, ...]:
        return tuple(f"{layout}{how}" for layout in LAYOUTS for how in ("", CONCURRENT))

    def record(self, jobs: Sequence[Job]) -> dict[Path, str]:
        with (
            tempfile.TemporaryDirectory(prefix="tensortap-faults-") as folder,
            warm_servers(Path(folder, "log")) as warm,
        ):
            return record_by_server(
                jobs, lambda model, layout, mine: record_on_one_server(model, LAYOUTS[layout], mine, warm)
            )


def record_on_one_server(model: str, layout: Layout, jobs: Sequence[Job], warm: WarmLauncher) -> dict[Path, str]:
    """Serve ``model`` and make the recordings; returns what went wrong, by run.

    Raises ServerError when the server does not come up.
    """
    taps = (CONFIGS / "sglang" / "forward.yaml", CONFIGS / "sglang" / f"{CONFIG_OF.get(model, model)}.yaml")
    flags = ("--model-path", str(checkpoint(model)), "--max-total-tokens", "4096", *layout.flags)
    with tempfile.TemporaryDirectory(prefix="tensortap-faults-") as name:
        folder = Path(name)
        switch = Switch(HERE / "switch.yaml", folder)
        with sglang_server(
            "qwen3",
            flags,
            log=folder / "server.log",
            recording=switch.recording,
            environment=dict(layout.environment),
            radix_cache=layout.radix_cache,
            fork=True,
            warm=warm,
        ) as server:

            def cache_beginnings() -> None:
                """Leave nothing in the cache of prefixes but the first half of every prompt."""
                requests.post(f"{server.url}/flush_cache", timeout=60)
                for prompt in make_prompts(PROMPTS):
                    server.generate(prompt[: len(prompt) // 2], new_tokens=1)

            return record_while_serving(server, switch, taps, jobs, cache_beginnings if layout.radix_cache else None)


ENGINE = SGLang()

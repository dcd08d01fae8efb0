"""Records real vLLM servers: one server for each layout, one recording after the other while it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.engines.protocol import Job
from benchmarks.faults.engines.serving import CONCURRENT, PROMPTS, Switch, record_by_server, record_while_serving
from benchmarks.faults.engines.sglang.checkpoints import checkpoint
from benchmarks.faults.prompts import make_prompts
from testbed.paths import CONFIGS
from testbed.vllm_server import vllm_server

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Layout:
    """How a server is started."""

    tensor_parallel: int = 1
    flags: tuple[str, ...] = ("--no-enable-prefix-caching",)
    cached: bool = False
    """The first half of every prompt is in the cache of prefixes."""


LAYOUTS = {
    "vllm-tp1": Layout(),
    "vllm-tp2": Layout(2),
    "vllm-tp1-chunk": Layout(flags=("--no-enable-prefix-caching", "--max-num-batched-tokens", "64")),
    "vllm-tp1-cached": Layout(flags=("--enable-prefix-caching",), cached=True),
}


class Vllm:
    """A family is a model, a variant is a layout, with requests one after the other or all at once."""

    name = "vllm"

    def families(self) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in (CONFIGS / "vllm").glob("*.yaml") if path.stem != "forward"))

    def variants(self, family: str) -> tuple[str, ...]:
        """A cached layout has one variant: its first recording leaves all of the prompts in the cache."""
        return tuple(
            f"{layout}{how}" for layout in LAYOUTS for how in ("", CONCURRENT) if not (how and LAYOUTS[layout].cached)
        )

    def record(self, jobs: Sequence[Job]) -> dict[Path, str]:
        return record_by_server(jobs, lambda model, layout, mine: record_on_one_server(model, LAYOUTS[layout], mine))


def record_on_one_server(model: str, layout: Layout, jobs: Sequence[Job]) -> dict[Path, str]:
    """Serve ``model`` and make the recordings; returns what went wrong, by run.

    Raises ServerError when the server does not come up.
    """
    taps = (CONFIGS / "vllm" / "forward.yaml", CONFIGS / "vllm" / f"{model}.yaml")
    with tempfile.TemporaryDirectory(prefix="tensortap-faults-") as name:
        folder = Path(name)
        switch = Switch(HERE / "switch.yaml", folder)
        with vllm_server(
            checkpoint(model),
            tensor_parallel=layout.tensor_parallel,
            log=folder / "server.log",
            recording=switch.recording,
            flags=("--max-model-len", "1024", "--max-num-seqs", "8", *layout.flags),
        ) as server:

            def cache_beginnings() -> None:
                for prompt in make_prompts(PROMPTS):
                    server.generate(prompt[: len(prompt) // 2], new_tokens=1)

            return record_while_serving(server, switch, taps, jobs, cache_beginnings if layout.cached else None)


ENGINE = Vllm()

"""Records real SGLang servers: one server for each layout, one recording after the other while it runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from benchmarks.faults.engines.protocol import Job
from benchmarks.faults.engines.sglang.checkpoints import CLASSES, checkpoint
from benchmarks.faults.engines.sglang.switch import VARIABLE, Setting
from benchmarks.faults.prompts import NEW_TOKENS, make_prompts
from testbed.paths import CONFIGS
from testbed.servers import Recording, Server, ServerError, sglang_server

HERE = Path(__file__).parent
PROMPTS = "wide"


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
    "pp2": Layout(("--pp-size", "2")),
}
CONCURRENT = "-concurrent"
"""Ends the names of variants in which all requests are sent at once."""


class SGLang:
    """A family is a model, a variant is a layout, with requests one after the other or all at once."""

    name = "sglang"

    def families(self) -> tuple[str, ...]:
        return tuple(CLASSES)

    def variants(self, family: str) -> tuple[str, ...]:
        return tuple(f"{layout}{how}" for layout in LAYOUTS for how in ("", CONCURRENT))

    def record(self, jobs: Sequence[Job]) -> dict[Path, str]:
        servers: dict[tuple[str, str], list[Job]] = {}
        for job in jobs:
            servers.setdefault((job.family, job.variant.removesuffix(CONCURRENT)), []).append(job)
        problems: dict[Path, str] = {}
        for (model, layout), chosen in servers.items():
            try:
                problems |= record_on_one_server(model, LAYOUTS[layout], chosen)
            except ServerError as error:
                problems |= {job.run: str(error) for job in chosen if not job.run.exists()}
        return problems


def record_on_one_server(model: str, layout: Layout, jobs: Sequence[Job]) -> dict[Path, str]:
    """Serve ``model`` and make the recordings; returns what went wrong, by run.

    Raises ServerError when the server does not come up.
    """
    taps = (CONFIGS / "sglang" / "forward.yaml", CONFIGS / "sglang" / f"{model}.yaml")
    flags = ("--model-path", str(checkpoint(model)), "--max-total-tokens", "4096", *layout.flags)
    problems: dict[Path, str] = {}
    with tempfile.TemporaryDirectory(prefix="tensortap-faults-") as name:
        folder = Path(name)
        switch = folder / "switch.json"
        with sglang_server(
            "qwen3",
            flags,
            log=folder / "server.log",
            recording=Recording((HERE / "switch.yaml",), folder / "unused", {"TENSORTAP_ENABLE": "0"}),
            environment={VARIABLE: str(switch), **dict(layout.environment)},
            radix_cache=layout.radix_cache,
            fork=True,
        ) as server:
            for number, job in enumerate(jobs, 1):
                configs = _written(job, folder / str(number)) + taps
                unfinished = job.run.with_name(f".unfinished-{job.run.name}")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                try:
                    if layout.radix_cache:
                        _cache_beginnings(server)
                    Setting(2 * number - 1, str(unfinished), tuple(map(str, configs))).write(switch)
                    _send(server, job)
                    Setting(2 * number, None, ()).write(switch)
                    server.generate((1, 2, 3), new_tokens=1)  # its pass ends the recording on every rank
                except ServerError as error:
                    problems[job.run] = str(error)
                    if server.process.poll() is not None:
                        break
                    continue
                shutil.rmtree(job.run, ignore_errors=True)
                unfinished.rename(job.run)
    return problems


def _written(job: Job, folder: Path) -> tuple[Path, ...]:
    folder.mkdir()
    paths = tuple(folder / f"fault-{number}.yaml" for number in range(len(job.configs)))
    for path, text in zip(paths, job.configs, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def _cache_beginnings(server: Server) -> None:
    """Leave nothing in the cache of prefixes but the first half of every prompt."""
    requests.post(f"{server.url}/flush_cache", timeout=60)
    for prompt in make_prompts(PROMPTS):
        server.generate(prompt[: len(prompt) // 2], new_tokens=1)


def _send(server: Server, job: Job) -> None:
    prompts = make_prompts(PROMPTS)
    if job.variant.endswith(CONCURRENT):
        server.generate_all(prompts, new_tokens=NEW_TOKENS + 1)
    else:
        for prompt in prompts:
            server.generate(prompt, new_tokens=NEW_TOKENS + 1)


ENGINE = SGLang()

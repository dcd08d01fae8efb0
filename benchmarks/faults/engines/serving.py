"""Many recordings of one running server, sent the same requests each time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.faults.engines.protocol import Job
from benchmarks.faults.engines.switch import VARIABLE, Setting
from benchmarks.faults.prompts import NEW_TOKENS, make_prompts
from testbed.servers import Generated, Recording, ServerError

PROMPTS = "wide"
CONCURRENT = "-concurrent"
"""Ends the names of variants in which all requests are sent at once."""


class AnyServer(Protocol):
    """A server that generates greedily."""

    def generate(self, input_ids: Sequence[int], *, new_tokens: int = 4) -> Generated: ...


@dataclass(frozen=True)
class Switch:
    """How a server is told what to record: with ``config`` patched into it, it follows a file in ``folder``."""

    config: Path
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "switch.json"

    @property
    def recording(self) -> Recording:
        """For the start of the server: nothing is recorded yet."""
        return Recording((self.config,), self.folder / "unused", {"TENSORTAP_ENABLE": "0", **self.environment})

    @property
    def environment(self) -> Mapping[str, str]:
        return {VARIABLE: str(self.path)}


def record_by_server(
    jobs: Sequence[Job], record: Callable[[str, str, Sequence[Job]], Mapping[Path, str]]
) -> dict[Path, str]:
    """Make the recordings of ``jobs``, those of one model and layout on one server; returns what went wrong, by run.

    ``record`` is given a model, the name of a layout and their jobs; it may raise ServerError, and the next server is
    tried.
    """
    servers: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        servers.setdefault((job.family, job.variant.removesuffix(CONCURRENT)), []).append(job)
    problems: dict[Path, str] = {}
    for (model, layout), chosen in servers.items():
        try:
            problems |= record(model, layout, chosen)
        except ServerError as error:
            problems |= {job.run: str(error) for job in chosen if not job.run.exists()}
    return problems


def record_while_serving(
    server: AnyServer,
    switch: Switch,
    taps: Sequence[Path],
    jobs: Sequence[Job],
    before: Callable[[], None] | None = None,
) -> dict[Path, str]:
    """Make the recordings of ``jobs`` one after the other; returns what went wrong, by run.

    ``before`` is called before each, while nothing is recorded. Once the server does not answer, the rest is not tried.
    """
    problems: dict[Path, str] = {}
    for number, job in enumerate(jobs, 1):
        configs = (*_written(job, switch.folder / str(number)), *taps)
        unfinished = job.run.with_name(f".unfinished-{job.run.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            if before is not None:
                before()
            Setting(2 * number - 1, str(unfinished), tuple(map(str, configs))).write(switch.path)
            _send(server, concurrent=job.variant.endswith(CONCURRENT))
            Setting(2 * number, None, ()).write(switch.path)
            server.generate((1, 2, 3), new_tokens=1)  # its pass ends the recording on every rank
        except ServerError as error:
            problems |= {left.run: str(error) for left in jobs[number - 1 :]}
            break
        if not unfinished.exists():
            problems[job.run] = "the server recorded nothing"
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


def _send(server: AnyServer, *, concurrent: bool) -> None:
    prompts = make_prompts(PROMPTS)

    def generate(prompt: Sequence[int]) -> Generated:
        return server.generate(prompt, new_tokens=NEW_TOKENS + 1)

    if concurrent:
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(generate, prompts))
    else:
        for prompt in prompts:
            generate(prompt)

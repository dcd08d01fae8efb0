"""Real servers for tests and the demo: started on a free loopback port, stopped with everything they started."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import requests

from testbed.models import ModelName, tiny_model
from testbed.paths import CHECKOUT, stand_in_environment
from testbed.warm import WarmLauncher, WarmServer, warm_launcher

LAUNCHER = "sglang.launch_server"
IMPORTED = (
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.layers.attention.torch_native_backend",
    "sglang.srt.managers.data_parallel_controller",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
)
"""What a server imports in the end; the last of these imports the models."""
Process = subprocess.Popen[bytes] | WarmServer
"""Of a server; ``poll()`` and ``returncode`` say whether it still runs."""

START_SECONDS = 600.0
"""Time until a server has to answer. It takes 20 to 45 seconds on two idle cores, several times that on busy ones."""
REQUEST_SECONDS = 120.0
STOP_SECONDS = 10.0
LOG_TAIL_LINES = 40
PORTS = range(20_000, 30_000)
"""Below the ephemeral range, so that no outgoing connection takes one between the check and the start."""
NEIGHBOURS = (0, *range(233, 242))
"""SGLang under data-parallel attention also binds ports from 233 above its own on."""


class ServerError(RuntimeError):
    """A server that did not start, or died; the message ends with the tail of its log."""


@dataclass(frozen=True)
class Recording:
    """Which configs are patched into a server, and where its ranks record."""

    configs: tuple[Path, ...]
    run: Path
    """The run directory; its parent is made."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further ``TENSORTAP_`` variables."""

    def environment(self) -> dict[str, str]:
        return {
            "TENSORTAP_ENABLE": "1",
            "TENSORTAP_DIR": str(self.run.parent),
            "TENSORTAP_RUN": self.run.name,
            **self.settings,
        }

    def command(self, python: str) -> list[str]:
        """What goes before a command so that it runs patched."""
        configs = [argument for config in self.configs for argument in ("-c", str(config))]
        return [python, "-m", "patcher", "run", *configs, "--"]


@dataclass(frozen=True)
class Generated:
    """What a server answered to one request."""

    input_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    cached_tokens: int

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.input_ids + self.output_ids


@dataclass(frozen=True)
class Server:
    """A running SGLang server."""

    port: int
    log: Path
    process: Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def generate(self, input_ids: Sequence[int], *, new_tokens: int = 4) -> Generated:
        """Greedy generation of exactly ``new_tokens`` tokens. Raises ServerError when the server does not answer."""
        body = {
            "input_ids": list(input_ids),
            "sampling_params": {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True},
        }
        answer = self.post("/generate", body)
        return Generated(
            tuple(input_ids), tuple(answer["output_ids"]), int(answer["meta_info"].get("cached_tokens", 0))
        )

    def generate_all(self, prompts: Sequence[Sequence[int]], *, new_tokens: int = 4) -> list[Generated]:
        """All prompts at once, each in a request of its own; the answers are in the order of the prompts."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self.generate(prompt, new_tokens=new_tokens), prompts))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            response = requests.post(self.url + path, json=body, timeout=REQUEST_SECONDS)
            response.raise_for_status()
        except requests.RequestException as error:
            raise ServerError(f"POST {path}: {error}\n{log_tail(self.log)}") from error
        return response.json()


@contextlib.contextmanager
def sglang_server(
    model: ModelName,
    flags: Sequence[str] = (),
    *,
    log: Path,
    recording: Recording | None = None,
    environment: Mapping[str, str] | None = None,
    radix_cache: bool = False,
    fork: bool = False,
    warm: WarmLauncher | None = None,
) -> Iterator[Server]:
    """A real SGLang server, patched and recording when ``recording`` is given.

    ``flags`` go to ``sglang.launch_server`` as they are. SGLang spawns its ranks; with ``fork`` they are forked from
    the launcher, which saves more than half of the processor time that a server takes. With ``warm`` the launcher is
    forked too, which saves most of the rest, and patched by ``patcher.apply`` in place of ``patcher run``. Raises
    ServerError when the server does not come up.
    """
    port = free_port()
    arguments = [
        *("--model-path", str(tiny_model(model))),
        *("--device", "cpu", "--host", "127.0.0.1", "--port", str(port)),
        *("--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
        *("--max-total-tokens", "512", "--max-running-requests", "8"),
        *("--disable-overlap-schedule", "--skip-server-warmup"),
        *(() if radix_cache else ("--disable-radix-cache",)),
        *flags,
    ]
    variables = {
        **_cpu_environment(_size(flags, "--tp") * _size(flags, "--pp-size")),
        **(recording.environment() if recording else {}),
        **({"TESTBED_FORK_RANKS": "1"} if fork else {}),
        **(environment or {}),
    }
    if recording:
        recording.run.parent.mkdir(parents=True, exist_ok=True)
    if warm is None:
        prefix = recording.command(sys.executable) if recording else []
        launched = supervised([*prefix, sys.executable, "-m", LAUNCHER, *arguments], variables, log)
    else:
        configs = recording.configs if recording else ()
        launched = warm.server(arguments, variables, log, configs=configs, grace=STOP_SECONDS)
    with launched as process:
        wait_until_ready(f"http://127.0.0.1:{port}/model_info", process, log)
        yield Server(port, log, process)


@contextlib.contextmanager
def warm_servers(log: Path) -> Iterator[WarmLauncher]:
    """What ``sglang_server(warm=...)`` takes."""
    environment = {**_cpu_environment(1), **models_alone(*get_args(ModelName)), "TESTBED_FORK_RANKS": "1"}
    with warm_launcher(LAUNCHER, IMPORTED, environment, log) as launcher:
        yield launcher


def models_alone(*models: ModelName) -> dict[str, str]:
    """The environment in which a server imports these of SGLang's models, and not all 260 of them."""
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.submodule_search_locations is not None
    wanted = {"gemma3_causal" if model == "gemma3" else model for model in models}
    modules = {file.stem for file in Path(package.submodule_search_locations[0], "srt/models").glob("*.py")}
    assert wanted <= modules, f"SGLang has no model {wanted - modules}"
    return {"SGLANG_DISABLED_MODEL_ARCHS": ",".join(sorted(modules - wanted))}


@contextlib.contextmanager
def supervised(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command with its output in ``log``; on exit it and all its descendants are gone, whatever happened."""
    log.parent.mkdir(parents=True, exist_ok=True)
    supervisor = Path(__file__).with_name("supervise.py")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(supervisor), str(STOP_SECONDS), *command],
            cwd=CHECKOUT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the server in order
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def wait_until_ready(url: str, process: Process, log: Path) -> None:
    """Returns when a GET of the address succeeds. Raises ServerError when the process ends or time is up."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(
                f"the server ended with exit code {process.returncode} before it answered\n{log_tail(log)}"
            )
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.25)
    raise ServerError(f"the server did not answer within {START_SECONDS:.0f} s\n{log_tail(log)}")


def log_tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([f"--- the last lines of {log}:", *lines[-LOG_TAIL_LINES:]])


def free_port() -> int:
    """A loopback port that is free now, with the ports beside it that SGLang may bind too."""
    while True:
        port = random.choice(PORTS)
        if all(_is_free(port + offset) for offset in NEIGHBOURS):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def cores_of_ranks(ranks: int) -> str:
    """A core for each rank, in the form that SGLang and vLLM both take: ``0|1|0|1``."""
    cores = os.cpu_count() or 1
    return "|".join(str(rank % cores) for rank in range(ranks))


def _size(flags: Sequence[str], flag: str) -> int:
    return int(flags[flags.index(flag) + 1]) if flag in flags else 1


def _cpu_environment(ranks: int) -> dict[str, str]:
    return {
        **stand_in_environment(),
        "SGLANG_USE_CPU_ENGINE": "1",
        # Without it SGLang wants a NUMA node for each rank.
        "SGLANG_CPU_OMP_THREADS_BIND": cores_of_ranks(ranks),
        # Otherwise the first request at tensor parallelism spends 20 s compiling.
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
    }

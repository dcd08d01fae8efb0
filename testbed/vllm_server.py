"""A real vLLM server, in the virtual environment of its own that ``make venv-vllm`` makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from testbed.models import ModelName, tiny_model
from testbed.paths import CHECKOUT, stand_in_environment
from testbed.servers import (
    REQUEST_SECONDS,
    Generated,
    Recording,
    ServerError,
    cores_of_ranks,
    free_port,
    log_tail,
    supervised,
    wait_until_ready,
)

PYTHON = CHECKOUT / ".venv-vllm" / "bin" / "python"
KV_CACHE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class VllmServer:
    port: int
    model: Path
    log: Path

    def generate(self, input_ids: Sequence[int], *, new_tokens: int = 4) -> Generated:
        """Greedy generation of exactly ``new_tokens`` tokens. Raises ServerError when the server does not answer."""
        body = {
            "model": str(self.model),
            "prompt": list(input_ids),
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        try:
            response = requests.post(f"http://127.0.0.1:{self.port}/v1/completions", json=body, timeout=REQUEST_SECONDS)
            response.raise_for_status()
        except requests.RequestException as error:
            raise ServerError(f"POST /v1/completions: {error}\n{log_tail(self.log)}") from error
        output = response.json()["choices"][0]["token_ids"]
        return Generated(tuple(input_ids), tuple(output), cached_tokens=0)


@contextlib.contextmanager
def vllm_server(
    model: ModelName | Path,
    *,
    tensor_parallel: int = 1,
    log: Path,
    recording: Recording | None = None,
    flags: Sequence[str] = (),
) -> Iterator[VllmServer]:
    """A vLLM server of a tiny model or of a checkpoint's folder, patched and recording when ``recording`` is given.

    ``flags`` come last and so win. Raises ServerError when the server does not come up.
    """
    port = free_port()
    folder = model if isinstance(model, Path) else tiny_model(model)
    command = [
        *(recording.command(str(PYTHON)) if recording else ()),
        *(str(PYTHON), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder), "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"),
        *("--kv-cache-memory-bytes", str(KV_CACHE_BYTES)),
        *("--tensor-parallel-size", str(tensor_parallel)),
        *flags,
    ]
    environment = {
        **stand_in_environment("vllm_cpu"),
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        **({"VLLM_CPU_OMP_THREADS_BIND": cores_of_ranks(tensor_parallel)} if tensor_parallel > 1 else {}),
        **(recording.environment() if recording else {}),
    }
    if recording:
        recording.run.parent.mkdir(parents=True, exist_ok=True)
    with supervised(command, environment, log) as process:
        wait_until_ready(f"http://127.0.0.1:{port}/health", process, log)
        yield VllmServer(port, folder, log)

"""Greedy generation with Transformers and eager attention on a CPU, in a program of its own that can run patched.

``python -m testbed.generate MODEL NUMBER_OF_TOKENS TOKEN_ID…`` prints the generated token ids.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from testbed.models import ModelName, tiny_model
from testbed.paths import CHECKOUT, stand_in_environment
from testbed.servers import Generated, Recording


def transformers_generate(
    model: ModelName, prompt: Sequence[int], *, new_tokens: int, recording: Recording
) -> Generated:
    """Generates in a patched and recording process. Raises CalledProcessError, with its output in the test's."""
    arguments = [str(tiny_model(model)), str(new_tokens), *map(str, prompt)]
    command = [*recording.command(sys.executable), sys.executable, "-m", "testbed.generate", *arguments]
    recording.run.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **stand_in_environment(), **recording.environment(), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Generated(tuple(prompt), tuple(map(int, done.stdout.splitlines()[-1].split())), cached_tokens=0)


def _generate(model: Path, new_tokens: int, prompt: list[int]) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.bfloat16)
    loaded.generation_config.eos_token_id = None  # exactly as many tokens as asked for
    with torch.inference_mode():
        ids = loaded.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False)
    return [int(token) for token in ids[0, len(prompt) :]]


if __name__ == "__main__":
    print(*_generate(Path(sys.argv[1]), int(sys.argv[2]), [int(token) for token in sys.argv[3:]]))

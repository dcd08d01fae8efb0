"""Tiny, randomly initialised models that SGLang, vLLM and Transformers all serve on a CPU.

Less than a million parameters each and a byte-level tokenizer of 258 tokens; nothing is downloaded. Up to four
tensor-parallel ranks each get a part of all heads and sizes: SGLang on a CPU pads what it cannot split with zeros
(key-value heads, and intermediate sizes to multiples of 32 a rank), and ranks that hold zeros would test nothing.
The head size of 32 is the smallest that vLLM takes on a CPU.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from testbed.paths import CACHE, CHECKOUT, stand_in_environment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ModelName = Literal["qwen3", "qwen3_moe"]

_SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": 257,
    "intermediate_size": 128,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 128,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def tiny_model(name: ModelName) -> Path:
    """The folder of a model, written when it is not there yet (safe with several processes at once)."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = CACHE / "models" / f"{name}-{version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
            try:
                # In a process of its own: Transformers imports the torchvision that the stand-in mends.
                command = [sys.executable, "-m", "testbed.models", name, str(unfinished)]
                subprocess.run(command, cwd=CHECKOUT, env={**os.environ, **stand_in_environment()}, check=True)
                os.rename(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(name: ModelName, folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    if name == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**_SHAPE, dtype=torch.bfloat16))
    else:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**_SHAPE, **_EXPERTS, dtype=torch.bfloat16))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.to(torch.bfloat16).save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>", model_max_length=512
    )


if __name__ == "__main__":
    _write(sys.argv[1], Path(sys.argv[2]))  # type: ignore[arg-type]

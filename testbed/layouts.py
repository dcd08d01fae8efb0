"""Recordings of one request by real SGLang servers, one per parallel layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.models import ModelName
from testbed.paths import CONFIGS
from testbed.servers import Generated, Recording, sglang_server
from testbed.warm import WarmLauncher

PROMPT = (84, 104, 101, 32, 99)
"""Five tokens: the case in which data-parallel attention leaves one rank without any."""
LONG_PROMPT = tuple(1 + 37 * number % 255 for number in range(64))
"""64 tokens: enough for some whose choice of experts hangs on a rounding."""
NEW_TOKENS = 6
TAPS = frozenset(
    {
        "layer_input",
        "attn_pre_o_proj",
        "attn_output",
        "pre_mlp_residual",
        "moe_router_logits",
        "moe_expert_output",
        "mlp_output",
    }
)
"""Names that every layer of the Qwen3-MoE model records."""


@dataclass(frozen=True)
class Layout:
    """A model, how it is spread over ranks, and the request that it serves."""

    name: str
    model: ModelName
    flags: tuple[str, ...]
    fault: str | None = None
    """A config of ``configs/faults`` that is patched in as well."""
    prompt: tuple[int, ...] = PROMPT

    @property
    def configs(self) -> tuple[Path, ...]:
        taps = (CONFIGS / "sglang" / "forward.yaml", CONFIGS / "sglang" / f"{self.model}.yaml")
        return taps if self.fault is None else (*taps, CONFIGS / "faults" / f"{self.fault}.yaml")


FAMILIES: tuple[ModelName, ...] = ("llama", "qwen2", "mixtral", "gemma", "gemma2", "gemma3", "deepseek_v2")
"""Further models, each on one rank (``llama-tp1``) and on two (``llama-tp2``). They compute in float32: in bfloat16 the
last bit decides now and then which token comes next, and all after it is another text."""
DATA_PARALLEL_ATTENTION = ("--tp", "2", "--dp", "2", "--enable-dp-attention")
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("tp1", "qwen3_moe", ("--tp", "1")),
        Layout("tp2", "qwen3_moe", ("--tp", "2")),
        Layout("tp4", "qwen3_moe", ("--tp", "4")),
        Layout("dp2", "qwen3_moe", DATA_PARALLEL_ATTENTION),
        Layout("tp2-scaled", "qwen3_moe", ("--tp", "2"), fault="qwen3_moe_scaled_attention_output"),
        Layout("tp2-dropped", "qwen3_moe", ("--tp", "2"), fault="qwen3_moe_dropped_all_reduce"),
        Layout("long-tp1", "qwen3_moe", ("--tp", "1"), prompt=LONG_PROMPT),
        Layout("long-tp2", "qwen3_moe", ("--tp", "2"), prompt=LONG_PROMPT),
        Layout(
            "long-tp2-scaled",
            "qwen3_moe",
            ("--tp", "2"),
            fault="qwen3_moe_slightly_scaled_attention_output",
            prompt=LONG_PROMPT,
        ),
        Layout("dense-tp1", "qwen3", ("--tp", "1")),
        Layout("dense-tp2", "qwen3", ("--tp", "2")),
        Layout("pp2", "qwen3_moe", ("--pp-size", "2")),
        *(
            Layout(f"{model}-tp{size}", model, ("--tp", str(size), "--dtype", "float32"))
            for model in FAMILIES
            for size in (1, 2)
        ),
    )
}


def record(layout: Layout, run: Path, *, warm: WarmLauncher | None = None) -> Generated:
    """Serves the prompt of the layout once and records it to ``run``. Raises ServerError.

    Its ranks are forked from the launcher, and with ``warm`` the launcher from that process.
    """
    recording = Recording(layout.configs, run)
    log = run.with_suffix(".log")
    with sglang_server(layout.model, layout.flags, log=log, recording=recording, fork=True, warm=warm) as server:
        return server.generate(layout.prompt, new_tokens=NEW_TOKENS)

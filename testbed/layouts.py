"""Recordings of one request by real SGLang servers, one per parallel layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from testbed.models import ModelName
from testbed.paths import CONFIGS
from testbed.servers import Generated, Recording, sglang_server

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
    fork: bool = True
    """Whether ranks are forked from the launcher, to start sooner; those of ``tp2`` and ``dp2`` are spawned, which is
    what SGLang does."""

    @property
    def configs(self) -> tuple[Path, ...]:
        taps = (CONFIGS / "sglang" / "forward.yaml", CONFIGS / "sglang" / f"{self.model}.yaml")
        return taps if self.fault is None else (*taps, CONFIGS / "faults" / f"{self.fault}.yaml")


DATA_PARALLEL_ATTENTION = ("--tp", "2", "--dp", "2", "--enable-dp-attention")
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("tp1", "qwen3_moe", ("--tp", "1")),
        Layout("tp2", "qwen3_moe", ("--tp", "2"), fork=False),
        Layout("tp4", "qwen3_moe", ("--tp", "4")),
        Layout("dp2", "qwen3_moe", DATA_PARALLEL_ATTENTION, fork=False),
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
    )
}


def record(layout: Layout, run: Path) -> Generated:
    """Serves the prompt of the layout once and records it to ``run``. Raises ServerError."""
    recording = Recording(layout.configs, run)
    log = run.with_suffix(".log")
    with sglang_server(layout.model, layout.flags, log=log, recording=recording, fork=layout.fork) as server:
        return server.generate(layout.prompt, new_tokens=NEW_TOKENS)

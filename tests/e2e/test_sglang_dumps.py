"""Dumps that SGLang's own patcher and dumper made of real servers, judged by SGLang's comparator and by ours."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from comparator import compare
from testbed.servers import sglang_server
from testbed.warm import WarmLauncher
from tests.differential.intended import unintended
from tests.differential.peers import compare_with_both, disagreements, installed_package, peer

PROMPT = (7, 3, 9, 11, 2, 40, 41)
DATA_PARALLEL = ("--tp", "2", "--dp", "2", "--enable-dp-attention")
PATCHES = """
patches:
  - target: sglang.srt.models.qwen3_moe.Qwen3MoeDecoderLayer.forward
    edits:
      - match: |
          hidden_states = self.attn_boundary.finish(hidden_states, forward_batch)
        prepend: |
          dumper.dump('attn_output', hidden_states, dims='t h[attn_tp:partial] # dp:=attn_dp')
      - match: |
          hidden_states = self.mlp(hidden_states, forward_batch)
        prepend: |
          dumper.dump('mlp_input', hidden_states, dims='t h # tp:replicated')
"""
JOINED = ("--preset", "sglang_megatron")
FLAGS: tuple[tuple[str, ...], ...] = (
    (),
    JOINED,
    (*JOINED, "--end-step", "0"),
    ("--preset", "raw"),
    ("--filter", "attn_output", "--diff-threshold", "1e-7"),
)


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory, warm: WarmLauncher) -> tuple[Path, Path]:
    """One request, served by one rank and under data-parallel attention."""
    folder = tmp_path_factory.mktemp("dumps")
    return _record(folder, "single", ("--tp", "1"), warm), _record(folder, "data_parallel", DATA_PARALLEL, warm)


def _record(folder: Path, name: str, flags: Sequence[str], warm: WarmLauncher) -> Path:
    config = folder / "patches.yaml"
    config.write_text(PATCHES)
    environment = {
        "DUMPER_ENABLE": "1",
        "DUMPER_DIR": str(folder),
        "DUMPER_EXP_NAME": name,
        "DUMPER_SOURCE_PATCHER_CONFIG": str(config),
        "DUMPER_ENABLE_OUTPUT_CONSOLE": "0",
    }
    log = folder / f"{name}.log"
    with sglang_server("qwen3_moe", flags, log=log, environment=environment, fork=True, warm=warm) as server:
        server.generate(PROMPT, new_tokens=4)
    return folder / name


def test_both_comparators_say_the_same(dumps: tuple[Path, Path], tmp_path: Path) -> None:
    package = installed_package()
    assert package is not None
    with peer(package) as running:
        for flags in FLAGS:
            argv = ["--baseline-path", str(dumps[0]), "--target-path", str(dumps[1]), *flags]
            theirs, ours = compare_with_both(running, argv, tmp_path)
            assert theirs.findings
            assert unintended(theirs, ours, disagreements(theirs, ours), flags) == [], flags


@pytest.mark.parametrize("aligner", ["concat_steps", "smart"])
def test_every_step_passes_under_data_parallel_attention(dumps: tuple[Path, Path], aligner: str) -> None:
    report = compare(*dumps, token_aligner=aligner, grouping_skip_keys=frozenset({"rank", "step"}))
    taps = [finding for finding in report if finding.name in ("attn_output", "mlp_input")]
    assert Counter(finding.category for finding in taps) == {"passed": 4}
    assert {finding.tokens.matched for finding in taps if finding.type == "comparison_tensor" and finding.tokens} == {
        10
    }


@pytest.mark.parametrize("aligner", ["concat_steps", "smart"])
def test_a_planted_fault_fails(dumps: tuple[Path, Path], aligner: str, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty"
    shutil.copytree(dumps[1], faulty)
    (file,) = faulty.glob("step=2___rank=0___*name=attn_output___*layer_id=1.pt")
    content = torch.load(file, weights_only=True)
    torch.save({**content, "value": content["value"] * 1.5}, file)
    report = compare(dumps[0], faulty, token_aligner=aligner, grouping_skip_keys=frozenset({"rank", "step"}))
    failed = [finding.label for finding in report.of("failed")]
    assert failed == ["attn_output layer_id=1"]

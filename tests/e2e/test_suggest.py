"""A model that nobody wrote a config for: ``patcher suggest`` writes one, and a real server records with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from dumper import open_run
from testbed.layouts import LAYOUTS, NEW_TOKENS, PROMPT
from testbed.servers import Recording, sglang_server
from testbed.warm import WarmLauncher
from tests.e2e.conftest import Recordings

LAYERS = 2


def test_a_suggested_config_records_a_real_server(recordings: Recordings, warm: WarmLauncher, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "patcher", "suggest", "sglang.srt.models.qwen3"]
    suggested = tmp_path / "suggested.yaml"
    suggested.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    layout = LAYOUTS["dense-tp1"]
    run = tmp_path / "suggested"
    recording = Recording((suggested,), run)  # it extends the config for forward passes
    log = run.with_suffix(".log")
    with sglang_server(layout.model, layout.flags, log=log, recording=recording, warm=warm) as server:
        server.generate(PROMPT, new_tokens=NEW_TOKENS)

    recorded = open_run(run)
    assert not recorded.problems
    assert recorded.losses == 0
    in_every_layer = [tap for tap in recorded.taps if "Qwen3DecoderLayer.forward" in tap.id]
    assert len(in_every_layer) >= 6, "the layer's input, and the result of each submodule call"
    assert {tap.fired for tap in in_every_layer} == {LAYERS * NEW_TOKENS}

    # What it calls self_attn is what the config that ships calls attn_output, recorded by another server.
    shipped = open_run(recordings("dense-tp1")).select(name="attn_output")
    assert len(shipped) == LAYERS * NEW_TOKENS
    for expected in shipped:
        (found,) = recorded.select(name="self_attn", step=expected.step, layer_id=expected.tags["layer_id"])
        np.testing.assert_array_equal(found.array(), expected.array())

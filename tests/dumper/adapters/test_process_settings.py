"""What a process was started with goes into the header, without secrets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from dumper import open_run
from dumper.adapters.process_settings import flags_of, process_settings
from dumper.recording.recorder import Recorder


def test_flags_in_every_form() -> None:
    arguments = ["serve.py", "--tp", "2", "--dp=4", "--enable-dp-attention", "--stop", "a", "b", "-v"]
    assert flags_of(arguments) == {"--tp": "2", "--dp": "4", "--enable-dp-attention": "", "--stop": "a b -v"}
    assert flags_of([]) == {}


def test_secrets_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--api-key", "s3cret", "--tokenizer-path", "tok", "--max-total-tokens", "5"])
    monkeypatch.setenv("SGLANG_AUTH_TOKEN", "s3cret")
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    found = process_settings()
    assert "s3cret" not in str(found)
    assert found["--tokenizer-path"] == "tok"
    assert found["--max-total-tokens"] == "5"
    assert found["SGLANG_USE_CPU_ENGINE"] == "1"


def test_the_header_of_a_run_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--attention-backend", "torch_native"])
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(tmp_path), run="run", control=False)
    recorder.dump("x", torch.ones(2))
    recorder.close()
    settings = open_run(tmp_path / "run").headers[0].settings
    assert settings["--attention-backend"] == "torch_native"
    assert settings["torch.default_dtype"] == "torch.float32"


def test_a_model_that_a_flag_names_tells_its_shape_and_a_digest_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "head_dim": 32,
        "num_experts_per_tok": 2,
        "architectures": ["A", "B"],
        "rope_parameters": {"rope_theta": 1},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    monkeypatch.setattr(sys, "argv", ["x", "--model-path", str(tmp_path)])
    found = process_settings()
    assert found["model.head_dim"] == "32"
    assert found["model.num_experts_per_tok"] == "2"
    assert found["model.architectures"] == "A B"
    assert found["model.rope_theta"] == "1"
    (tmp_path / "model.safetensors").write_bytes(bytes(range(1, 256)) * 100 + bytes(100))
    assert process_settings()["model.weights"] != found["model.weights"]


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"head_dim": null, "text_config": 5, "rope_parameters": []}'])
def test_a_model_folder_with_anything_in_it_does_no_harm(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "a.safetensors").mkdir()
    monkeypatch.setattr(sys, "argv", ["x", "--model", str(tmp_path), "--tp", "2"])
    found = process_settings()
    assert found["--tp"] == "2"
    assert not any(name.startswith("model.") for name in found)

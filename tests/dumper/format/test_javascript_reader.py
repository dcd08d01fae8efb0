"""The specification is enough: a reader of under 150 lines in another language reads what the dumper wrote."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dumper.recording.recorder import Recorder
from dumper.settings import Settings

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"


@pytest.fixture(scope="session")
def node() -> str:
    """The path of a node that has the packages of ``package.json``."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("node and npm are not installed: the reader in JavaScript is not tried")
    if not (MODULES / "@msgpack").is_dir() or not (MODULES / "hash-wasm").is_dir():
        command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        installed = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120, check=False)
        if installed.returncode != 0:
            pytest.skip(f"npm cannot install @msgpack/msgpack and hash-wasm: {installed.stderr[-300:]}")
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    recorder = Recorder(Settings(enable=True, dir=str(tmp_path), run="run", control=False))
    recorder.step()
    recorder.dump("attn", torch.tensor([[1.0, -2.5], [3.0, 1e30]], dtype=torch.bfloat16), dims="t h", layer_id=1)
    recorder.dump("note", {"temperature": 0.5, "ids": [1, None, "x"]})
    recorder.step()
    recorder.dump("large", torch.zeros(300_000))
    recorder.close()
    return tmp_path / "run"


def _read(node: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [node, str(HERE / "reader.mjs"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_lists_a_run_checks_it_and_prints_a_bf16_tensor(node: str, run: Path) -> None:
    result = _read(node, str(run), "attn")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert "record attn step=0 occurrence=0 layer_id=1 bfloat16 [2,2]" in lines
    values = lines[lines.index("record attn step=0 occurrence=0 layer_id=1 bfloat16 [2,2]") + 1]
    assert values.strip() == "[1,-2.5,3,1.0014151822283e+30]".replace("1.0014151822283e+30", _javascript(1e30))
    assert "record large step=1 occurrence=0 float32 [300000]" in lines
    assert "rank-00000.msgpack: 3 records, 3 in the index" in lines
    assert lines[-1] == "every checksum is right"


def test_it_prints_values_that_are_no_tensors(node: str, run: Path) -> None:
    assert '{"temperature":0.5,"ids":[1,null,"x"]}' in _read(node, str(run), "note").stdout


def test_it_finds_a_flipped_byte(node: str, run: Path) -> None:
    file = run / "rank-00000.msgpack"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = _read(node, str(run))
    assert result.returncode == 1
    assert "DAMAGED rank-00000.msgpack: record" in result.stdout


def test_it_stays_short() -> None:
    assert len((HERE / "reader.mjs").read_text().splitlines()) < 150


def _javascript(number: float) -> str:
    """The bf16 nearest to a number, as JavaScript prints it."""
    text = repr(torch.tensor(number, dtype=torch.bfloat16).item())
    return text.replace("e+", "e+")

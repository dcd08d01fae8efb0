"""Shipped configs by name, in the checkout and in an installation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patcher.cli import main
from patcher.config.load import load_config
from patcher.config.shipped import locate_config, shipped_configs
from patcher.errors import ConfigError
from testbed.paths import CONFIGS

ROOT = Path(__file__).parents[2]


def test_every_config_has_a_name_and_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in CONFIGS.glob("*/*.yaml")}
    assert shipped_configs() == files
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(files)
    assert all(len(line.split()) > 1 for line in lines)


@pytest.mark.parametrize("name", ["sglang/qwen3", "sglang/qwen3.yaml", "configs/sglang/qwen3.yaml"])
def test_a_name_is_known_in_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sglang" / "qwen3").mkdir(parents=True)
    assert locate_config(name) == CONFIGS / "sglang" / "qwen3.yaml"
    assert load_config(name).path == str(CONFIGS / "sglang" / "qwen3.yaml")


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "qwen3.yaml").write_text("patches: []")
    assert load_config("sglang/qwen3.yaml").path == "sglang/qwen3.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qwen3", "sglang/qwen3 and transformers/qwen3 and vllm/qwen3 come nearest"),
        ("sglang/lama.yaml", "sglang/llama"),
        ("taps/of/mine.yaml", "No such file or directory"),
    ],
)
def test_what_is_neither_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert str(caught.value).startswith(f"{name}: cannot be read: No such file")
    assert str(caught.value).count("come nearest") == (0 if name.startswith("taps") else 1)
    assert hint in str(caught.value)


@pytest.mark.slow
def test_an_installation_has_them(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("patcher", "dumper", "comparator", "tensortap", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(installed), str(source)], check=True, capture_output=True)
    code = """
import patcher.cli
from patcher.config.load import load_config
from patcher.config.shipped import shipped_configs
print(patcher.__file__)
patcher.cli.main(["configs"])
for name in shipped_configs():
    files = load_config(name).files
    print(name, files[0].document.path)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(installed), *sys.path]!r}\n{code}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    first, *lines = done.stdout.splitlines()
    assert first.startswith(str(installed))
    names = sorted(shipped_configs())
    assert [line.split()[0] for line in lines] == names * 2
    assert all(line.split()[1].startswith(str(installed)) for line in lines[len(names) :])

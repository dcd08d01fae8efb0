"""The configs that ship: found by name, in a checkout as in an installation."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

_KNOWN_CONFIG = ("sglang", "forward.yaml")
_INSTALLED = "share/tensortap/configs"
"""Below the prefix of the environment, as ``pyproject.toml`` says."""


def shipped_configs() -> dict[str, Path]:
    """Name (``sglang/qwen3``) to file of every config that ships; empty when they were left out of an installation."""
    root = _root()
    if root is None:
        return {}
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in sorted(root.glob("*/*.yaml"))}


def locate_config(config: str | Path) -> Path:
    """The file that is meant by a path, or by the name of a config that ships, with or without ``configs/``, ``.yaml``.

    A file that exists wins, a folder of that name does not. What is neither is returned as it is.
    """
    path = Path(config)
    if path.exists() and not path.is_dir():
        return path
    return shipped_configs().get(_name(path), path)


def nearest_shipped(config: str | Path) -> list[str]:
    """Names of shipped configs that are like a path which does not exist, best first."""
    names = list(shipped_configs())
    wanted = _name(Path(config))
    same_file = [name for name in names if name.rpartition("/")[2] == wanted.rpartition("/")[2]]
    return same_file or difflib.get_close_matches(wanted, names, n=3)


def summary(file: Path) -> str:
    """The first sentence of the comment that a shipped config begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines[: _comment_length(lines)])
    return comment.partition(". ")[0].rstrip(".")


def _comment_length(lines: list[str]) -> int:
    return next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))


def _name(path: Path) -> str:
    name = path.with_suffix("") if path.suffix == ".yaml" else path
    return name.as_posix().removeprefix("configs/")


@lru_cache(maxsize=1)
def _root() -> Path | None:
    return next((root for root in _candidates() if root.joinpath(*_KNOWN_CONFIG).is_file()), None)


def _candidates() -> Iterator[Path]:
    packages = Path(__file__).resolve().parents[2]
    yield packages / "configs"
    # As ``pip install --target`` leaves them.
    yield packages / _INSTALLED
    try:
        files = importlib.metadata.files("tensortap") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.as_posix().endswith("/".join((_INSTALLED, *_KNOWN_CONFIG))):
            yield Path(str(file.locate())).resolve().parents[1]

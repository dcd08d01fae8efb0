"""The configs that ship: found by name, in a checkout as in an installation."""

from __future__ import annotations

import difflib
import importlib.resources
from pathlib import Path


def shipped_configs() -> dict[str, Path]:
    """Name (``sglang/qwen3``) to file of every config that ships, without ``bases``, which others only build on."""
    return {_name(file.relative_to(_root())): file for file in sorted(_root().glob("*/*.yaml"))}


def locate_config(config: str | Path) -> Path:
    """The file that is meant by a path, or by the name of a config that ships, with or without ``configs/``, ``.yaml``.

    A file that exists wins, a folder of that name does not. What is neither is returned as it is.
    """
    path = Path(config)
    if (path.exists() and not path.is_dir()) or path.is_absolute() or ".." in path.parts:
        return path
    shipped = _root() / f"{_name(path)}.yaml"
    return shipped if shipped.is_file() else path


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


def _root() -> Path:
    return Path(str(importlib.resources.files("patcher") / "configs")).resolve()

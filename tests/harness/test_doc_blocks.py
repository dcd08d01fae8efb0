"""The code in README and docs does what it says: it is run, or checked against the program that it is for."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import numpy
import pytest
import yaml

import comparator
import dumper
import patcher
from comparator.__main__ import main as comparator_command
from dumper.__main__ import main as dumper_command
from dumper.recording.recorder import Recorder
from dumper.settings import Settings
from patcher.__main__ import main as patcher_command
from testbed.paths import CHECKOUT
from tests.harness.documents import BLOCKS, Block, blocks, code_spans

LANGUAGES = {"python", "yaml", "shell", "filter", "text"}
"""``text`` is output and pictures; the command lines in it are checked as well."""
COMMAND = re.compile(r"[$ ]*python -m ")
OUR_MODULES = ("patcher", "dumper", "comparator", "demo", "benchmarks.", "tests.differential.run")
"""Those whose command line argparse reads."""


def ids(block: Block) -> str:
    return block.id


@pytest.mark.parametrize("block", BLOCKS, ids=ids)
def test_every_block_says_what_it_is(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.id}: a block of code needs one of {sorted(LANGUAGES)}"


# Shell


class _Parsed(BaseException):
    """Ends a program once its command line was read."""


def assert_command_line(arguments: list[str], where: str) -> None:
    """Fails when ``python -m MODULE ARGUMENT…`` is refused by the module's own parser."""
    module = arguments[0]
    assert _exists(module), f"{where}: there is no module {module}"
    if not module.startswith(OUR_MODULES):
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *given: Any) -> NoReturn:
        parse(self, *given)
        raise _Parsed

    errors = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        mock.patch.object(sys, "argv", arguments),
        contextlib.redirect_stderr(errors),
        pytest.raises((_Parsed, SystemExit)) as ended,
    ):
        program_of(module).main()
    assert ended.type is _Parsed, f"{where}: python -m {shlex.join(arguments)}\n{errors.getvalue()}"


def program_of(module: str) -> Any:
    """The module that ``python -m`` runs."""
    found = importlib.import_module(module)
    return importlib.import_module(f"{module}.__main__") if hasattr(found, "__path__") else found


def _exists(module: str) -> bool:
    if module.startswith("vllm") or module == "script":
        return True  # in an environment of its own; a stand-in for the reader's
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not rest:
        return spec is not None
    # Looked for as files: importing SGLang takes many seconds.
    inside = [Path(folder, *rest.split(".")) for folder in spec.submodule_search_locations or ()]
    return any(path.is_dir() or path.with_suffix(".py").is_file() for path in inside)


def commands(words: list[str]) -> Iterator[list[str]]:
    """What follows ``python -m`` in a command, and what follows that in the command that it runs."""
    while "-m" in words:
        start = words.index("-m")
        if start == 0 or not words[start - 1].endswith("python"):
            return
        words = words[start + 1 :]
        yield words
        words = words[words.index("--") + 1 :] if "--" in words else []


def lines_of(block: Block) -> list[str]:
    return block.text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("block", blocks("shell"), ids=ids)
def test_shell_blocks_parse_and_their_flags_exist(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.id}: {done.stderr}"
    for line in lines_of(block):
        words = shlex.split(line, comments=True)
        for arguments in commands(words):
            assert_command_line(arguments, block.id)
        if words[:1] == ["make"]:
            assert words[1] in make_targets(), f"{block.id}: make has no target {words[1]}"


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), flags=re.MULTILINE))


def synopses() -> list[tuple[str, str]]:
    """Command lines within text: in shown output, and as code within a line."""
    shown = [(block.id, line) for block in blocks("text") for line in lines_of(block)]
    return [(where, line.strip("$ ")) for where, line in (*shown, *code_spans()) if COMMAND.match(line)]


@pytest.mark.parametrize(("where", "line"), synopses())
def test_flags_of_commands_in_text_exist(where: str, line: str) -> None:
    """``[--option]``, ``A | B`` and ``…`` are notation; a command that is named without its arguments is only named."""
    notation = re.sub(r"\s\\?\|.*|[\[\]]|\.\.\.|…", "", line)
    for arguments in commands(shlex.split(notation)):
        if any(word.startswith("-") for word in arguments):
            assert_command_line(arguments, where)
        else:
            assert _exists(arguments[0]), f"{where}: there is no module {arguments[0]}"


def test_environment_variables_exist() -> None:
    """Every ``TENSORTAP_…`` that a page names is a setting, or stands in the source."""
    variable = re.compile(r"TENSORTAP_[A-Z_]+")
    known = {f"TENSORTAP_{name.upper()}" for name in Settings.__dataclass_fields__}
    for package in (patcher, dumper, comparator):
        for file in Path(package.__path__[0]).rglob("*.py"):
            known |= set(variable.findall(file.read_text()))
    named = {name for block in BLOCKS for name in variable.findall(block.text)}
    named |= {name for _, code in code_spans() for name in variable.findall(code)}
    assert named
    assert named <= known


# YAML and filters


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs ``baseline``, ``target`` and ``tp1``, which hold the same."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("baseline", "target", "tp1"):
        recorder = Recorder()
        recorder.configure(enable=True, dir=str(folder), run=name, control=False)
        with recorder.step():
            recorder.dump("attn_output", numpy.arange(8.0).reshape(2, 4), dims="t h", layer_id=1)
        recorder.close()
    return folder


def compare(runs: Path, *flags: str) -> int:
    return comparator_command([str(runs / "baseline"), str(runs / "target"), "--report-path", "", *flags])


def check_config(config: dict[str, Any], file: Path) -> int:
    file.write_text(yaml.safe_dump(config))
    return patcher_command(["check", "-c", str(file)])


def check_edits(edits: list[dict[str, Any]], file: Path) -> int:
    patch = {"target": "json.dumps", "optional": True, "edits": [{**edit, "optional": True} for edit in edits]}
    return check_config({"patches": [patch]}, file)


@pytest.mark.parametrize("block", blocks("yaml"), ids=ids)
def test_yaml_blocks_are_configs(block: Block, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole configs land in the installed SGLang; what is a part of a config is accepted as such a part."""
    file = tmp_path / "config.yaml"
    file.write_text(block.text)
    content = yaml.safe_load(block.text)
    match content:
        case None:
            assert block.not_run, f"{block.id} holds no value"
        case {"patches": _}:
            assert patcher_command(["check", "-c", str(file)]) == 0, capsys.readouterr()
        case {"overrides": _}:
            assert compare(runs, "--override-config", str(file)) == 0, capsys.readouterr()
        case {"map": _}:
            assert compare(runs, "--map", str(file)) != 2, capsys.readouterr()
        case dict():
            edit = {"match": "x = ...", "dump": {"name": "x", "value": "x"}, **content}
            assert check_edits([edit], file) == 0, capsys.readouterr()
        case list():
            assert check_edits(content, file) == 0, capsys.readouterr()
        case _:
            pytest.fail(f"{block.id}: this is no config that anything here reads")


@pytest.mark.parametrize("block", blocks("filter"), ids=ids)
def test_filters_are_read(block: Block, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in block.text.splitlines():
        assert dumper_command(["ls", str(runs / "tp1"), "--records", "--filter", line]) == 0, capsys.readouterr()


# Python

SETUPS = {
    "README.md": "",
    "recording.md": "import numpy\nbatch, tensor = None, numpy.ones((2, 4))\n",
    "comparing.md": (
        "import numpy, comparator\nfrom dumper import dumper\ninputs = numpy.ones((2, 4))\n"
        "def new_model(value): dumper.dump('out', value * 2, dims='t h')\n"
        "old_model = new_model\n"
    ),
    "patch-config.md": (
        "import pathlib, sys\nsys.path.insert(0, '.')\n"
        "pathlib.Path('net.py').write_text('def forward(x):\\n    y = x + 1\\n    return y\\n')\n"
        "pathlib.Path('taps.yaml').write_text('patches: [{target: net.forward, edits: "
        "[{match: y = ..., after: y += 1}]}]')\n"
        "import net\ninputs = 1\ndef model(inputs): assert net.forward(inputs) == 3\n"
    ),
    "adapters.md": "class my: pass\n",
}
"""What the Python of a page takes for granted: the reader's model and inputs."""


PLAIN_PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""pytest without the plugins of this environment, which take seconds to load."""


def runnable() -> list[Block]:
    return [block for block in blocks("python") if block.not_run is None]


@pytest.mark.parametrize("block", runnable(), ids=ids)
def test_python_blocks_run(block: Block, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for run in runs.iterdir():
        if block.page != "recording.md":  # which records the run itself
            (tmp_path / "runs" / run.name).symlink_to(run)
    file = tmp_path / "test_block.py"
    file.write_text(SETUPS[block.page] + block.text)
    is_test = re.search(r"^def test_", block.text, re.MULTILINE) is not None
    pytest_command = ("-m", "pytest", "-p", "pytest_tensortap", "-p", "no:cacheprovider", "-c", os.devnull)
    done = subprocess.run(
        [sys.executable, *(pytest_command if is_test else ()), str(file)],
        cwd=tmp_path,
        env={**os.environ, "TENSORTAP_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(CHECKOUT), **PLAIN_PYTEST},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block.id}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", [block for block in blocks("python") if block.not_run], ids=ids)
def test_python_blocks_that_cannot_run_compile(block: Block) -> None:
    ast.parse(block.text)


def api_names() -> set[tuple[str, str]]:
    """``dumper.dump_dict``, ``comparator.compare`` and the like, in blocks of Python and as code within a line."""
    name = re.compile(r"(?<![\w./-])(dumper|comparator|patcher)\.([a-z_]+)(?=\(|\b)(?!/)")
    texts = [*(block.text for block in blocks("python")), *(code for _, code in code_spans())]
    return {match.groups() for text in texts for match in name.finditer(text)}  # type: ignore[misc]


@pytest.mark.parametrize(("package", "name"), sorted(api_names()))
def test_names_of_the_api_exist(package: str, name: str) -> None:
    module = {"dumper": dumper, "comparator": comparator, "patcher": patcher}[package]
    owners = [module, dumper.dumper] if package == "dumper" else [module]
    submodule = importlib.util.find_spec(f"{package}.{name}")
    assert submodule is not None or any(hasattr(owner, name) for owner in owners)

"""A pytest plugin that runs SGLang's own tests against this project: ``tests.differential.sglang_tests`` starts it.

``TENSORTAP_STANDS_IN`` says which program of SGLang's is replaced, before a test module imports it:

- ``comparator``: ``run(parse_args(argv))`` is ours, as is ``python -m`` in a process of its own, and where a test has
  the comparison of a pair raise, ours raises. The tests read our JSON lines with the record types of SGLang; nothing is
  changed on the way.
- ``patcher``, ``patcher-in-memory``: ``apply_edits``, ``patch_function`` and what builds on them run ours; the module
  that the tests make can be imported, or lies in ``sys.modules`` alone.
- ``dumper``: ``_Dumper`` records with ours, and the ranks behind the HTTP tests are ours.
- ``nothing``: SGLang's own program, which shows that the tests pass where they are run.

Every test that reached our code is written to ``TENSORTAP_RESULTS``, one JSON object a line.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import comparator.cli
from comparator.measure.measurer import Measurer
from comparator.plan.selection import Selected
from tests.differential.peer_worker import import_entrypoint
from tests.differential.peers import installed_package
from tests.differential.sglang_dumper import (
    DumperStandIn,
    requests_with_token,
    temp_set_env,
    test_utils,
    write_before_looking,
)
from tests.differential.sglang_edits import StandIn, make_importable

STANDS_IN = os.environ["TENSORTAP_STANDS_IN"]
_reached: set[str] = set()
_running: list[str] = []


def _reach() -> None:
    _reached.update(_running)


def _package() -> Path:
    package = installed_package()
    if package is None:
        raise pytest.UsageError("sglang is not installed")
    return package


def _stand_in_for_comparator() -> None:
    entrypoint: Any = import_entrypoint(_package())
    parse_args = entrypoint.parse_args

    def parse(argv: list[str]) -> Any:
        arguments = parse_args(argv)
        arguments.argv_as_given = list(argv)
        return arguments

    def run(arguments: Any) -> int:
        _reach()
        return comparator.cli.run(comparator.cli.build_parser().parse_args(arguments.argv_as_given))

    def run_process(command: Any, *others: Any, **options: Any) -> Any:
        if command[1:3] == ["-m", "sglang.srt.debug_utils.comparator"]:
            _reach()
            command = [*command[:2], "comparator", *command[3:]]
        return process_run(command, *others, **options)

    def measure(measurer: Measurer, selected: Selected, *others: Any, **options: Any) -> Any:
        entrypoint.compare_bundle_pair(name=selected.pair.name)
        return measure_pair(measurer, selected, *others, **options)

    if STANDS_IN == "comparator":
        process_run, measure_pair = subprocess.run, Measurer._measure
        entrypoint.parse_args, entrypoint.run = parse, run
        entrypoint.compare_bundle_pair = lambda **_: None  # what a test puts here is called where ours measures
        Measurer._measure = measure  # type: ignore[method-assign]
        subprocess.run = run_process  # type: ignore[assignment]


def _stand_in_for_patcher() -> None:
    package: Any = importlib.import_module("sglang.srt.debug_utils.source_patcher")
    program: Any = importlib.import_module("sglang.srt.debug_utils.source_patcher.code_patcher")
    editor: Any = importlib.import_module("sglang.srt.debug_utils.source_patcher.source_editor")
    stand_in = StandIn(package.PatchApplicationError, _reach)
    editor.apply_edits = stand_in.apply_edits
    for module in (program, package):
        module.patch_function = stand_in.patch_function
        module.CodePatcher = stand_in.code_patcher
        module.apply_patches_from_config = stand_in.apply_patches_from_config
    if STANDS_IN == "patcher":
        make_importable(Path(os.environ["TENSORTAP_SAMPLE"]), Path(tempfile.mkdtemp()))


def _stand_in_for_dumper() -> None:
    sys.modules["sglang.test.test_utils"] = test_utils()
    environ: Any = importlib.import_module("sglang.srt.environ")
    if not hasattr(environ, "temp_set_env"):
        environ.temp_set_env = temp_set_env
    if STANDS_IN == "dumper":
        theirs: Any = importlib.import_module("sglang.srt.debug_utils.dumper")
        DumperStandIn.reach = staticmethod(_reach)
        theirs._Dumper = DumperStandIn
        os.environ["TENSORTAP_SGLANG_ENV"] = "1"
        write_before_looking()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a model from the net or processes of SGLang's, and give requests the token of ours."""
    parted = [item for item in items if item.name.endswith("[sglang]") or (_over_http(item) and STANDS_IN != "dumper")]
    config.hook.pytest_deselected(items=parted)
    items[:] = [item for item in items if item not in parted]
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        if hasattr(module, "_dumper_worker"):
            module.requests = requests_with_token()


def _over_http(item: pytest.Item) -> bool:
    return "dumper_http_url" in getattr(item, "fixturenames", ()) or "TestZmqPortIsolation" in item.nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    _running[:] = [item.nodeid]
    try:
        return (yield)
    finally:
        _running.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    found = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "reached": report.nodeid in _reached,
        "reason": str(report.longrepr).splitlines()[-1:] if report.failed else [],
    }
    with open(os.environ["TENSORTAP_RESULTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


def _stand_in() -> None:
    for name in ("sglang.test", "sglang.test.ci"):
        module = types.ModuleType(name)
        module.__path__ = [str(_package().joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    _stand_in_for_comparator()
    _stand_in_for_dumper()
    if STANDS_IN.startswith("patcher"):
        _stand_in_for_patcher()


_stand_in()  # before any conftest imports SGLang

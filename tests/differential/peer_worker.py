"""Runs SGLang's own comparator, request by request: ``python peer_worker.py DIRECTORY_OF_THE_SGLANG_PACKAGE``.

One JSON object per line comes in (``{"argv": [...]}``) and goes out (``{"exit_code": int, "error": str | null}``);
``{"report": path}`` asks what of a report SGLang's record types refuse (``{"unreadable": [...]}``). The
package's ``debug_utils`` run without the rest of SGLang when ``sglang`` and ``sglang.srt`` are empty packages with the
right path, which is much faster to import.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path


class _Absent(types.ModuleType):
    """A module of SGLang's engine, which the comparator does not use; every name in it is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def import_entrypoint(package: Path) -> types.ModuleType:
    for name, path in (("sglang", package), ("sglang.srt", package / "srt"), ("sglang.srt.managers", package / "none")):
        module = types.ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module
    for name in ("sglang.srt.managers.io_struct", "sglang.srt.runtime_context", "sglang.srt.utils"):
        sys.modules[name] = _Absent(name)
    # The dumper looks for the engine and for Megatron, and does without what cannot be imported.
    sys.modules["sglang.srt.distributed"] = None  # type: ignore[assignment]
    import importlib

    return importlib.import_module("sglang.srt.debug_utils.comparator.entrypoint")


@contextlib.contextmanager
def _each_file_read_once() -> Iterator[None]:
    """SGLang's comparator reads a file up to four times, which is most of what a small comparison costs there. Every
    time it gets a copy of its own of what it read the first time."""
    import torch

    read, load = {}, torch.load

    def copied(value: object) -> object:  # as copy.deepcopy, which takes longer than reading
        if type(value) is torch.Tensor:
            return value.clone()
        if type(value) is dict:
            return {key: copied(one) for key, one in value.items()}
        return value if type(value) in (int, float, str, bool) else copy.deepcopy(value)

    def load_once(path: object, **options: object) -> object:
        key = (os.fspath(path), *sorted(options.items()))
        if key not in read:
            read[key] = load(path, **options)
        return copied(read[key])

    torch.load = load_once
    try:
        yield
    finally:
        torch.load = load


def _unreadable(report: Path) -> list[str]:
    """What SGLang's own record types refuse in a report, line by line."""
    import importlib

    types_of_records = importlib.import_module("sglang.srt.debug_utils.comparator.output_types")
    refused = []
    for line in report.read_text(encoding="utf-8").splitlines():
        try:
            types_of_records.parse_record_json(line)
        except ValueError as error:
            refused.append(str(error))
    return refused


def _serve(package: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        entrypoint = import_entrypoint(package)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "report" in request:
            print(json.dumps({"unreadable": _unreadable(Path(request["report"]))}), file=answers, flush=True)
            continue
        argv = request["argv"]
        sink = io.StringIO()
        error = None
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), _each_file_read_once():
            try:
                code = entrypoint.run(entrypoint.parse_args(argv))
            except BaseException as raised:  # whatever ends a process there is an answer here
                code, error = 1, f"{type(raised).__name__}: {raised}"
        print(json.dumps({"exit_code": code, "error": error}), file=answers, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))

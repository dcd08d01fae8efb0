"""Programs in processes forked from one that has imported what they need, which is most of what a short one costs.

``python -m testbed.forked IMPORTED…`` is that process. Each line of its standard input is a request in JSON:
``program`` (code, or with ``module`` the name of one that runs as ``python -m`` does), ``arguments``, ``environment``,
``folder`` (to run in), and the files that take what it prints, ``out`` and ``err``. It is answered by a line with the
number of the process and one with its exit code. What an interpreter takes from the environment when it starts, and
what modules do when they are imported for the first time, is not for this.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed.paths import CHECKOUT

LIGHT = (
    *("comparator.cli", "comparator.pipeline", "dumper.cli", "dumper.recording.session", "multiprocessing", "numpy"),
    *("patcher.cli", "patcher.launch", "patcher.load.compile", "patcher.rewrite.module"),
)
"""What programs without torch import. The one ``dumper`` object is not among it: it reads the environment when it is
made."""
TORCH = ("numpy", "torch._dynamo", "torch.func", "torch.masked", "torch.testing._internal.two_tensor")
"""What programs with torch import; the dumper itself is not among it."""


class ForkHost:
    """Runs programs by forking, one at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._answers = b""

    def run(
        self,
        program: str,
        *arguments: str,
        module: bool = False,
        environment: Mapping[str, str] | None = None,
        folder: Path = CHECKOUT,
        timeout: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """What ``subprocess.run([sys.executable, "-c", program, *arguments])`` gives; with ``module``, ``-m``.

        Raises TimeoutExpired after ``timeout`` seconds; the program is killed then, and what it started is not.
        """
        with tempfile.TemporaryDirectory() as scratch:
            out, err = Path(scratch, "out"), Path(scratch, "err")
            request = {
                "program": program,
                "module": module,
                "arguments": arguments,
                "environment": dict(os.environ if environment is None else environment),
                "folder": str(folder),
                "out": str(out),
                "err": str(err),
            }
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            forked = self._answer(timeout)
            assert forked is not None, "the process that forks says nothing"
            code = self._answer(timeout)
            if code is None:
                os.kill(forked, signal.SIGKILL)
                self._answer(timeout)
                raise subprocess.TimeoutExpired(program, timeout, _text(out), _text(err))
            return subprocess.CompletedProcess([program, *arguments], code, _text(out), _text(err))

    def _answer(self, timeout: float) -> int | None:
        """The next number that the process says; None after ``timeout`` seconds."""
        assert self._process.stdout is not None
        while b"\n" not in self._answers:
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                return None
            said = os.read(self._process.stdout.fileno(), 1024)
            assert said, "the process that forks has ended"
            self._answers += said
        number, _, self._answers = self._answers.partition(b"\n")
        return int(number)


@functools.cache
def light_host() -> ForkHost:
    """The one that runs programs without torch, started when it is first needed; it ends with this process."""
    ending = contextlib.ExitStack()
    atexit.register(ending.close)
    return ending.enter_context(fork_host(LIGHT))


@contextlib.contextmanager
def fork_host(imported: Sequence[str]) -> Iterator[ForkHost]:
    """A process that programs are forked from; it has imported these modules."""
    command = [sys.executable, "-m", "testbed.forked", *imported]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        yield ForkHost(process)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _next_request() -> dict[str, Any]:
    """In a forked process what it has to run; in this one nothing returns before the end of the input."""
    answers = os.fdopen(os.dup(1), "w")
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    rest = [place for place in sys.path[1:] if place not in own]
    gc.freeze()  # so that collections in the children leave the shared pages alone
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            for number, path in enumerate((os.devnull, request["out"], request["err"])):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), number)
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["folder"])
            sys.argv = ["-c", *request["arguments"]]
            more = request["environment"].get("PYTHONPATH", "")
            sys.path[:] = [request["folder"] if request["module"] else "", *filter(None, more.split(os.pathsep)), *rest]
            return request
        print(pid, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
    sys.exit()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    # At the top of the main module, so that the process ends as that of ``python -c`` does.
    asked = _next_request()
    if asked["module"]:
        runpy.run_module(asked["program"], run_name="__main__", alter_sys=True)
    else:
        exec(compile(asked["program"], "<string>", "exec"), {"__name__": "__main__"})

"""Servers forked from one process that has imported what they need.

Importing is most of what a server of SGLang costs: ten seconds of processor time and more, in the launcher and in each
rank. The forked launcher patches the imported modules (``patcher.apply``) and then runs its module as ``python -m``
does.

``python -m testbed.warm LAUNCHER IMPORTED…`` is that process. Its standard input is a socket on which each request
comes with a second socket, the lifeline of the server: the server and its descendants end when the other end is closed,
whatever closed it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed.paths import CHECKOUT
from testbed.supervise import become_supervisor, supervise

LONGEST_REQUEST = 1 << 20
"""Bytes."""


class WarmServer:
    """A server that was forked, with what is used of ``subprocess.Popen``."""

    def __init__(self, lifeline: socket.socket) -> None:
        self._lifeline = lifeline
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while the server runs."""
        if self.returncode is not None:
            return self.returncode
        readable, _, _ = select.select([self._lifeline], [], [], 0)
        return self.wait() if readable else None

    def wait(self) -> int:
        if self.returncode is None:
            answer = self._lifeline.recv(64)
            self.returncode = int(answer) if answer else -1  # its supervisor was killed
        return self.returncode

    def end(self) -> None:
        """End the server with everything that it started, and wait for that. A second call does nothing."""
        if self._lifeline.fileno() < 0:
            return
        with contextlib.suppress(OSError):  # its supervisor has gone
            self._lifeline.shutdown(socket.SHUT_WR)
        self.wait()
        self._lifeline.close()


class WarmLauncher:
    """Starts servers by forking."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests

    @contextlib.contextmanager
    def server(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        configs: Sequence[Path] = (),
        grace: float,
    ) -> Iterator[WarmServer]:
        """The launcher's module with these arguments, patched by ``configs``, its output in ``log``.

        After the block it is gone. Its ranks get ``grace`` seconds to finish.
        """
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "configs": list(map(str, configs)),
            "log": str(log),
            "grace": grace,
        }
        here, there = socket.socketpair()
        with there:
            socket.send_fds(self._requests, [json.dumps(request).encode()], [there.fileno()])
        server = WarmServer(here)
        try:
            yield server
        finally:
            server.end()


@contextlib.contextmanager
def warm_launcher(
    launcher: str, imported: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[WarmLauncher]:
    """A process that servers are forked from; all of them run the module ``launcher``.

    It and the modules ``imported`` are imported under ``environment``. Output goes to ``log``.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with log.open("wb") as output, there:
        process = subprocess.Popen(
            [sys.executable, "-m", "testbed.warm", launcher, *imported],
            cwd=CHECKOUT,
            env={**os.environ, **environment},
            stdin=there,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield WarmLauncher(here)
    finally:
        here.shutdown(socket.SHUT_RDWR)
        process.wait()
        here.close()


class _Forked:
    """A child made by ``os.fork``."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        code = self._reap(0)
        assert code is not None
        return code

    def _reap(self, options: int) -> int | None:
        if self._code is None:
            with contextlib.suppress(ChildProcessError):  # psutil, which ends it, may have met it first
                pid, status = os.waitpid(self._pid, options)
                if pid == 0:
                    return None
                self._code = os.waitstatus_to_exitcode(status)
                return self._code
            self._code = -1
        return self._code


def _main(launcher: str, imported: Sequence[str]) -> None:
    with socket.socket(fileno=os.dup(0)) as requests:
        for module in (launcher, *imported):
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # so that collections in the children leave the shared pages alone
        while True:
            message, descriptors, _, _ = socket.recv_fds(requests, LONGEST_REQUEST, 1)
            if not message:
                return
            if os.fork() == 0:
                requests.close()
                _run_and_exit(_serve, launcher, json.loads(message), descriptors[0])
            os.close(descriptors[0])
            _reap_ended()


def _reap_ended() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _run_and_exit(program: Any, *arguments: Any) -> None:
    """A forked process must not go on with what its parent does."""
    code = 1
    try:
        program(*arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve(launcher: str, request: dict[str, Any], lifeline: int) -> None:
    """Supervises the server, in the process that was forked for it."""
    with open(request["log"], "wb") as log, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    become_supervisor()
    pid = os.fork()
    if pid == 0:
        os.close(lifeline)
        _run_and_exit(_launch, launcher, request)
    code = supervise(_Forked(pid), lifeline, request["grace"])
    with contextlib.suppress(BrokenPipeError):
        os.write(lifeline, str(code).encode())


def _launch(launcher: str, request: dict[str, Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(request["environment"])
    if dumping := sys.modules.get("sglang.srt.debug_utils.dumper"):
        # SGLang's own dumper took its settings from the environment when it was imported.
        dumping.dumper.configure(**dataclasses.asdict(dumping.DumperConfig.from_env()))
    random.seed()  # servers draw ports, and those of one parent would draw the same ones
    if request["configs"]:
        import patcher

        patcher.apply(*map(Path, request["configs"]))
    sys.argv = [launcher, *request["arguments"]]
    sys.modules.pop(launcher)  # it runs a second time, as the main module
    runpy.run_module(launcher, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])

"""Our recorder in the place of SGLang's dumper, for SGLang's own tests: ``sglang_tests_plugin`` puts it there.

The tests look at ``.pt`` files; so the run is written as those, by what ``dumper convert`` does, before they look. For
the tests over HTTP, two ranks of ours run in processes of their own, and requests get the token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests

from dumper import open_run
from dumper.convert.to_pt import write_pt_files
from dumper.recording.recorder import Recorder
from dumper.settings import Settings

TOKEN = "for-the-tests"
_RANKS = 2
_WORKER = """
import sys, time, torch
from pathlib import Path
from dumper import dumper
rank, size, folder, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
dumper.configure(enable=False, server_port=port, http_token=sys.argv[5], dir=folder)
dumper.step()
while not Path(folder, "stop").exists():
    time.sleep(0.05)
dumper.close()
"""


class DumperStandIn:
    """What the tests take for SGLang's ``_Dumper``."""

    reach: Callable[[], None] = staticmethod(lambda: None)
    """Told that a test uses our recorder."""

    made: ClassVar[weakref.WeakSet[DumperStandIn]] = weakref.WeakSet()
    """All of them that are in use."""

    def __init__(self, *, config: Any) -> None:
        self.reach()
        self.made.add(self)
        self._config = config
        self._runs = tempfile.mkdtemp(prefix="stand-in-")
        self._recorder = Recorder(Settings(dir=self._runs))
        self._recorder.configure(**self._ours(dataclasses.asdict(config)))

    def _ours(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings that differ from their defaults; the run itself is beside the ``.pt`` files."""
        defaults = dataclasses.asdict(type(self._config)())
        chosen = {key: value for key, value in settings.items() if value != defaults.get(key) and key != "dir"}
        # Parameters are recorded there only where that is asked for.
        switches = {key: settings[key] for key in ("enable_model_value", "enable_model_grad") if key in settings}
        return {**chosen, **switches}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)

    def configure(self, **settings: Any) -> None:
        self.write_files()
        self._recorder.configure(**{key: value for key, value in settings.items() if key != "dir"})
        self._config = dataclasses.replace(self._config, **settings)

    def configure_default(self, **settings: Any) -> None:
        self._recorder.configure_default(**settings)
        found = {key: getattr(self._recorder.settings, key) for key in settings}
        self._config = dataclasses.replace(self._config, **found)

    def dump(self, *args: Any, **kwargs: Any) -> None:
        if self._config.exp_name is None:
            self._config = dataclasses.replace(self._config, exp_name="dump_run")
        self._recorder.dump(*args, **kwargs)

    def reset(self) -> None:
        self.write_files()
        self._recorder.reset()

    @property
    def _state(self) -> Any:
        state = self._recorder.get_state()
        tags = dict(self._recorder._common_tags)
        return types.SimpleNamespace(step=state["step"], dump_index=state["dump_index"], global_ctx=tags)

    def write_files(self) -> None:
        """What was recorded so far, as ``.pt`` files."""
        run = self._recorder.settings.run_path
        self._recorder.flush()
        if run.is_dir():
            folder = Path(self._config.dir) / (self._config.exp_name or "dump_run")
            folder.mkdir(parents=True, exist_ok=True)
            write_pt_files(open_run(run), folder)


def write_before_looking() -> None:
    """Have ``.pt`` files written whenever a test looks for files."""
    glob = Path.glob

    def looking(path: Path, pattern: str) -> Any:
        if pattern.endswith(".pt"):
            for stand_in in list(DumperStandIn.made):
                stand_in.write_files()
        return glob(path, pattern)

    Path.glob = looking  # type: ignore[method-assign, assignment]


def run_ranks(worker: Callable[..., None], **given: Any) -> None:
    """In the place of ``run_distributed_test``: the worker of the tests over HTTP; what else they start is SGLang's
    own dumper, which this does not test."""
    if "http_port" not in given:
        pytest.skip("starts processes with SGLang's own dumper")
    http_port, stop_event = given["http_port"], given["stop_event"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _WORKER]
        last = [str(_RANKS), folder, str(http_port), TOKEN]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        ranks = [subprocess.Popen([*command, str(rank), *last], env=environment) for rank in range(_RANKS)]
        stop_event.wait()
        Path(folder, "stop").touch()
        for rank in ranks:
            try:
                rank.wait(timeout=20)
            except subprocess.TimeoutExpired:
                rank.kill()


def requests_with_token() -> Any:
    """The module ``requests`` as the tests use it."""

    def post(url: str, **options: Any) -> requests.Response:
        DumperStandIn.reach()
        deadline = time.monotonic() + 30
        while True:
            reply = requests.post(url, headers={"Authorization": f"Bearer {TOKEN}"}, **options)
            # Until all ranks have shown up.
            if reply.status_code != 409 or time.monotonic() > deadline:
                return reply
            time.sleep(0.1)

    return types.SimpleNamespace(post=post, ConnectionError=requests.ConnectionError)


def test_utils() -> types.ModuleType:
    """In the place of ``sglang.test.test_utils``, whose imports need more than is installed."""
    module: Any = types.ModuleType("sglang.test.test_utils")
    module.DEFAULT_URL_FOR_TEST, module.DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH = "", 0
    module.popen_launch_server = None
    module.find_available_port = _free_port
    module.run_distributed_test = run_ranks
    return module  # type: ignore[no-any-return]


def _free_port(base: int) -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def temp_set_env(**variables: str) -> Iterator[None]:
    """What the tests of some releases import, and others do not have."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

"""A real server on two ranks: recording is switched on, narrowed and switched off while requests run."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dumper import open_run
from testbed.paths import CONFIGS
from testbed.servers import Recording, Server, free_port, models_alone, sglang_server

TOKEN = "a token for this test"
CONFIG_FILES = (CONFIGS / "sglang" / "forward.yaml", CONFIGS / "sglang" / "qwen3.yaml")


def ctl(run: Path, *arguments: str) -> str:
    """``python -m dumper ctl``, as a person calls it. Raises CalledProcessError."""
    command = [sys.executable, "-m", "dumper", "ctl", str(run), "--json", "--timeout", "120", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def effective(output: str) -> int:
    step: int = json.loads(output)["effective"]["0"]
    return step


def wait_for_step(run: Path, step: int) -> None:
    """Return when every rank has begun ``step``. What is proposed before a first pass would hold for it as well."""
    deadline = time.monotonic() + 120
    while min(rank["step"] for rank in json.loads(ctl(run, "status"))) < step:
        assert time.monotonic() < deadline, f"no rank reached step {step}"


class Requests:
    """Requests one after the other, two at a time, until told to stop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self.errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._run, args=(first,)) for first in (20, 60)]
        for thread in self._threads:
            thread.start()

    def _run(self, first: int) -> None:
        while not self._stop.is_set():
            try:
                self._server.generate(range(first, first + 6), new_tokens=12)
            except Exception as error:
                self.errors.append(error)
                return

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def post(port: int, path: str, body: dict[str, Any], token: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, int]]:
    """A server that records nothing yet, its run directory and the port of its HTTP endpoint.

    ``patcher run`` starts it and its ranks are spawned, as users do and as SGLang does; those of all other tests are
    forked, to start sooner.
    """
    run = tmp_path_factory.mktemp("control") / "run"
    port = free_port()
    settings = {
        "TENSORTAP_ENABLE": "0",
        "TENSORTAP_CONTROL": "1",
        "TENSORTAP_HTTP_PORT": str(port),
        "TENSORTAP_HTTP_TOKEN": TOKEN,
    }
    recording = Recording(CONFIG_FILES, run, settings)
    with sglang_server(
        "qwen3",
        ("--tp", "2"),
        log=run.with_suffix(".log"),
        recording=recording,
        environment=models_alone("qwen3"),
    ) as server:
        yield server, run, port


def test_changes_take_effect_at_one_step_on_both_ranks(controlled: tuple[Server, Path, int]) -> None:
    server, run, port = controlled
    # No pass has been made yet: the ranks are known all the same, and take the change for their first ones.
    ranks = json.loads(ctl(run, "status"))
    assert [(rank["rank"], rank["step"], rank["alive"]) for rank in ranks] == [(0, -1, True), (1, -1, True)]
    on = effective(ctl(run, "on"))

    requests = Requests(server)
    try:
        wait_for_step(run, on + 1)
        narrowed = effective(ctl(run, "--wait", "120", "filter", "layer_id == 1 and name == 'attn_output'"))
        off = effective(ctl(run, "--wait", "120", "off"))
        five = effective(ctl(run, "--wait", "120", "steps", "5"))
        status, reply = post(port, "/dumper/configure", {"enable": False}, TOKEN)
        assert status == 200
        stopped = reply[0]["effective"]["0"]
        assert [entry["rank"] for entry in reply] == [0, 1]
        assert post(port, "/dumper/configure", {"enable": True}, "another token")[0] == 403
        status, states = post(port, "/dumper/get_state", {}, TOKEN)
        assert status == 200
        assert {state["rank"] for state in states} == {0, 1}
    finally:
        requests.stop()
    assert requests.errors == []

    assert on < narrowed < off < five < stopped
    recorded = open_run(run)
    assert recorded.ranks == (0, 1)
    assert recorded.losses == 0
    steps = {rank: {record.step for record in recorded.select(rank=rank)} for rank in (0, 1)}
    wide = set(range(on, narrowed))
    narrow = set(range(narrowed, off)) | set(range(five, min(five + 5, stopped)))
    assert steps[0] == steps[1] == wide | narrow
    for rank in (0, 1):
        for step in narrow:
            names = {(record.name, record.tags["layer_id"]) for record in recorded.select(rank=rank, step=step)}
            assert names == {("attn_output", 1)}
        for step in wide:
            assert {
                record.tags["layer_id"] for record in recorded.select(rank=rank, step=step, name="attn_output")
            } == {
                0,
                1,
            }
        for step in wide | narrow:
            layout = recorded.layout(step, rank)
            assert layout is not None
            assert layout.real_rows == layout.rows > 0

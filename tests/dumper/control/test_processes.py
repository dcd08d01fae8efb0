"""Real processes that step together, changed from outside with ``dumper ctl`` and over HTTP."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import pytest

from dumper.control import Control, Place
from dumper.control.cli import main
from dumper.control.controller import living, read_ranks
from dumper.control.http import ControlServer, serve

RANKS = 3
TOKEN = "a token of some length"


class Recorder:
    def __init__(self) -> None:
        self.control: Control | None = None
        self.step = -1
        self.settings: dict[str, Any] = {"enable": False, "filter": None, "level": None, "steps": None}
        self.applied: list[tuple[int, dict[str, Any]]] = []

    def apply(self, changes: dict[str, Any]) -> None:
        self.applied.append((self.step, changes))
        self.settings.update(changes)

    def state(self) -> dict[str, Any]:
        return {"settings": dict(self.settings), "records": 0}


def run_rank(rank: int, run: Path, barrier: Barrier, running: Event, stop: Event, results: Connection) -> None:
    """A rank of an engine: passes run in step with the other ranks' while ``running`` is set."""
    recorder = Recorder()
    control = Control(run, recorder, lambda steps: Place(rank, RANKS))
    step = -1
    while True:
        running.wait(0.01)
        # All ranks decide together whether there is a pass and whether this is the end.
        votes[rank] = STOP if stop.is_set() else int(running.is_set())
        barrier.wait()
        voted = votes[:]
        barrier.wait()
        if STOP in voted:
            break
        if all(voted):
            step += 1
            recorder.step = step
            control.at_step(step)
            time.sleep(0.001 * (rank + 1))
    control.close()
    results.send(recorder.applied)


votes: Any = None
STOP = 2


def start_rank(votes_of_all: Any, *arguments: Any) -> None:
    global votes  # noqa: PLW0603
    votes = votes_of_all
    run_rank(*arguments)


class Engine:
    def __init__(self, run: Path) -> None:
        context = multiprocessing.get_context("spawn")
        run.mkdir()
        self.run = run
        self.running, self.stop = context.Event(), context.Event()
        barrier, self.votes = context.Barrier(RANKS), context.Array("b", RANKS)
        self.pipes, self.processes = [], []
        for rank in range(RANKS):
            here, there = context.Pipe()
            process = context.Process(
                target=start_rank,
                args=(self.votes, rank, run, barrier, self.running, self.stop, there),
                daemon=True,
            )
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
        self.wait_until(lambda: len(read_ranks(run)) == RANKS)

    def wait_until(self, condition: Any) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def steps(self) -> list[int]:
        return [rank.step for rank in read_ranks(self.run)]

    def end(self) -> list[list[tuple[int, dict[str, Any]]]]:
        """What each rank applied, and at which step."""
        self.stop.set()
        self.running.set()
        applied = [pipe.recv() for pipe in self.pipes if pipe.poll(20)]
        for process in self.processes:
            process.join(20)
        return applied


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("runs") / "run")
    yield engine
    for process in engine.processes:
        if process.is_alive():
            process.kill()


@pytest.fixture
def endpoint(engine: Engine) -> Iterator[ControlServer]:
    server = serve(engine.run, 0, TOKEN, timeout=20)
    assert server is not None
    yield server
    server.close()


def post(server: ControlServer, path: str, body: bytes = b"{}", token: str | None = TOKEN, method: str = "POST") -> Any:
    """Status and decoded reply."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", data=body, method=method)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def test_status_of_ranks_that_have_made_no_pass(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(engine.run), "status"]) == 0
    assert capsys.readouterr().out.count("none yet") == RANKS


def test_changes_hold_from_one_step_on_all_ranks(
    engine: Engine, endpoint: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(engine.run), "on"]) == 0  # with no pass under way: with the next ones
    assert "on all 3 ranks" in capsys.readouterr().out
    engine.running.set()
    engine.wait_until(lambda: min(engine.steps()) > 5)
    assert main([str(engine.run), "--json", "--wait", "20", "steps", "4"]) == 0
    agreed = json.loads(capsys.readouterr().out)
    assert main([str(engine.run), "off", "--wait", "20"]) == 0
    assert "recording off: from step" in capsys.readouterr().out
    status, reply = post(endpoint, "/dumper/configure", b'{"enable": true}')
    assert status == 200
    assert [entry["rank"] for entry in reply] == [0, 1, 2]
    status, _ = post(endpoint, "/dumper/reset")
    assert status == 200
    engine.wait_until(lambda: all(rank.applied >= 5 for rank in read_ranks(engine.run)))
    status, states = post(endpoint, "/dumper/get_state")
    assert status == 200
    assert [state["config"]["enable"] for state in states] == [False] * RANKS

    applied = engine.end()
    assert len(applied) == RANKS
    assert applied[0] == applied[1] == applied[2]
    first = agreed["effective"]["0"]
    assert [changes for _, changes in applied[0]] == [
        {"enable": True},
        {"enable": True, "steps": f"{first}-{first + 3}"},
        {"enable": False},
        {"enable": True},
        {"enable": False, "filter": None, "level": None, "steps": None},
    ]
    assert applied[0][0][0] == 0  # the first step of all
    assert applied[0][1][0] == first
    assert living(read_ranks(engine.run)) == []
    assert main([str(engine.run), "off"]) == 1
    assert "3 ended ranks" in capsys.readouterr().err


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlServer]:
    """An endpoint over a run without ranks, for requests that must not get that far."""
    server = serve(tmp_path_factory.mktemp("empty"), 0, TOKEN)
    assert server is not None
    yield server
    server.close()


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ({"path": "/dumper/get_state", "method": "GET"}, 405, "use POST"),
        ({"path": "/dumper/get_state", "method": "DELETE"}, 405, "use POST"),
        ({"path": "/dumper/configure", "token": None}, 401, "TENSORTAP_HTTP_TOKEN"),
        ({"path": "/dumper/configure", "token": "wrong"}, 403, "not that of"),
        ({"path": "/dumper/format_disk"}, 400, "the methods are configure"),
        ({"path": "/dumperconfigure"}, 404, "/dumper/configure"),
        ({"path": "/dumper/configure", "body": b"{"}, 400, "not JSON"),
        ({"path": "/dumper/configure", "body": b"[" * 50000}, 400, "not JSON"),
        ({"path": "/dumper/configure", "body": b"[1]"}, 400, "not an object"),
        ({"path": "/dumper/configure", "body": b"{}"}, 409, "no process can be controlled"),
        ({"path": "/dumper/configure", "body": b'{"compression": "zstd"}'}, 400, "cannot change 'compression'"),
        ({"path": "/dumper/configure", "body": b'{"exp_name": ""}'}, 400, "is no text"),
        ({"path": "/dumper/configure", "body": b'{"dir": null}'}, 400, "dir is a text"),
        ({"path": "/dumper/configure", "body": b'{"enable_grad": "yes"}'}, 400, "true or false"),
        ({"path": "/dumper/configure", "body": b'{"enable": 1}'}, 400, "true or false"),
        ({"path": "/dumper/configure", "body": b'{"steps": "often"}'}, 400, "cannot read 'often'"),
        ({"path": "/dumper/reset", "body": b'{"enable": true}'}, 400, "takes no 'enable'"),
        ({"path": "/dumper/configure", "body": b" " * 70000}, 413, "longer than"),
        ({"path": "/dumper/configure", "body": b'{"enable": true}'}, 409, "no process can be controlled"),
    ],
)
def test_a_bad_request_gets_a_reason(silent: ControlServer, request_: Any, status: int, reason: str) -> None:
    got, reply = post(silent, **request_)
    assert got == status
    assert reason in reply["error"]


def test_only_the_loopback_interface_is_served(silent: ControlServer) -> None:
    assert silent._server.server_address[0] == "127.0.0.1"


def test_without_a_token_nothing_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert serve(tmp_path, 0, None) is None
    assert serve(tmp_path, 0, "short") is None
    assert caplog.text.count("TENSORTAP_HTTP_TOKEN must be set") == 2


def test_a_port_in_use_is_said_and_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert serve(tmp_path, taken.getsockname()[1], TOKEN) is None
    assert "cannot be served" in caplog.text


def test_missing_and_killed_ranks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank 0 of 2 is here, rank 1 never came; then rank 1 comes and is killed."""
    recorder = Recorder()
    control = Control(tmp_path, recorder, lambda steps: Place(0, 2))
    deadline = time.monotonic() + 10
    while not read_ranks(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert main([str(tmp_path), "on"]) == 1
    assert "of 2 ranks these have not shown up: 1" in capsys.readouterr().err

    process = multiprocessing.get_context("spawn").Process(target=rank_that_is_killed, args=(tmp_path,))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert [rank.rank for rank in read_ranks(tmp_path)] == [0, 1]
    assert main([str(tmp_path), "on"]) == 1
    assert "have not shown up: 1" in capsys.readouterr().err
    control.at_step(0)
    control.close()
    assert recorder.applied == []


def rank_that_is_killed(run: Path) -> None:
    Control(run, Recorder(), lambda steps: Place(1, 2))
    while len(read_ranks(run)) < 2:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_does_not_answer_is_named_and_nothing_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    control = Control(tmp_path, recorder, lambda steps: Place(0, 1))
    deadline = time.monotonic() + 10
    while not read_ranks(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    control._stop.set()  # its watcher hangs
    control._thread.join()
    assert main([str(tmp_path), "--timeout", "0.2", "on"]) == 1
    assert "rank 0" in (said := capsys.readouterr().err)
    assert "did not see the change within 0.2 s; nothing was changed" in said
    for step in range(5):
        control.at_step(step)
    assert recorder.applied == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["steps", "0"], "say off"), (["steps", "often"], "cannot read 'often'")],
)
def test_a_wrong_command_line_exits_with_2(
    tmp_path: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent"), "on"]) == 1
    assert "no such run directory" in capsys.readouterr().err
    assert main([str(tmp_path / "absent"), "status"]) == 1

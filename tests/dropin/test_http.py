"""The HTTP endpoint as those use it who script SGLang's dumper."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dumper import open_run
from dumper.control.http import ControlServer, serve
from dumper.recording.recorder import Recorder
from dumper.settings import Settings

TOKEN = "0123456789"


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(Settings().changed(control=True, dir=str(tmp_path), run="run"))
    recorder.step()
    yield recorder
    recorder.close()


@pytest.fixture
def server(recorder: Recorder) -> Iterator[ControlServer]:
    server = serve(recorder.settings.run_path, 0, TOKEN)
    assert server is not None
    yield server
    server.close()


def post(server: ControlServer, method: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/dumper/{method}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code


def wait_for(server: ControlServer, **expected: Any) -> dict[str, Any]:
    """The state once it is so: ranks write down what they count every second."""
    deadline = time.monotonic() + 30
    while True:
        answer = post(server, "get_state")  # 409 until the rank has shown up
        if answer != 409 and expected.items() <= answer[0].items():
            return dict(answer[0])
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)


def reach(recorder: Recorder, agreed: dict[str, Any]) -> int:
    """Make steps up to the one from which a change holds."""
    step = int(agreed["effective"]["0"])
    while recorder.get_state()["step"] < step:
        recorder.step()
    return step


def test_a_recording_is_driven_as_sglangs(recorder: Recorder, server: ControlServer, tmp_path: Path) -> None:
    wait_for(server, rank=0)
    assert post(server, "configure") == [{"rank": 0, "effective": {}}]
    (agreed,) = post(server, "configure", enable=True, filter="name == 'x'", enable_grad=True)
    # Before any step is made.
    (state,) = post(server, "get_state")
    config = state["config"]
    assert (config["enable"], config["filter"], config["enable_grad"]) == (True, "name == 'x'", True)
    assert (config["dir"], config["exp_name"], state["dump_index"]) == (str(tmp_path), "run", 0)
    first = reach(recorder, agreed)
    recorder.dump("x", torch.ones(2))
    recorder.dump("y", torch.ones(2))
    wait_for(server, dump_index=1, pending=[])

    (agreed,) = post(server, "configure", exp_name="other", filter=None)
    second = reach(recorder, agreed)
    recorder.dump("y", torch.ones(2))
    (record,) = open_run(tmp_path / "run").records  # complete while the other is recorded
    assert (record.name, record.step) == ("x", first)

    (agreed,) = post(server, "reset")
    (state,) = post(server, "get_state")
    assert (state["config"]["enable"], state["config"]["exp_name"]) == (False, "other")
    reach(recorder, agreed)
    recorder.dump("y", torch.ones(2))
    recorder.close()
    (record,) = open_run(tmp_path / "other").records
    assert (record.name, record.step) == ("y", second)


def test_what_cannot_be_is_400(server: ControlServer) -> None:
    wait_for(server, rank=0)
    assert post(server, "nonsense") == 400
    assert post(server, "configure", nonsense=1) == 400
    assert post(server, "configure", enable="yes") == 400
    assert post(server, "configure", filter="x [") == 400


def test_the_later_of_two_changes_has_the_last_word(recorder: Recorder, server: ControlServer) -> None:
    for _ in range(50):  # at such a rate a change is planned some steps ahead
        recorder.step()
    wait_for(server, rank=0)
    (earlier,) = post(server, "configure", filter="rank == 1")
    wait_for(server, steps_per_second=0.0)
    (later,) = post(server, "configure", filter="rank == 2")
    assert later["effective"]["0"] >= earlier["effective"]["0"]
    reach(recorder, later)
    assert recorder.settings.filter == "rank == 2"

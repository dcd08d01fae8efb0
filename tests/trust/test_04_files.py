"""What lies in a run directory and is no regular file, and clients that send nothing: nobody waits for either."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from dumper import open_run
from dumper.cli import main
from testbed.forked import ForkHost
from tests.dumper.recording.conftest import Recording
from tests.trust.conftest import Programs

pytestmark = pytest.mark.slow

CONTROL_FILES = ["latest", "rank-00000.json", "000001.command.json", "000001.outcome.json", "000001.plan.json"]


@pytest.mark.parametrize("name", CONTROL_FILES)
def test_a_fifo_in_the_control_folder(program: Programs, name: str) -> None:
    control = program.path / "control"
    control.mkdir(parents=True)
    os.mkfifo(control / name)
    if name != "latest":
        (control / "latest").write_text(json.dumps({"generation": 1}))
    outcome = program(
        """
for number in range(3):
    dumper.step()
    dumper.dump("x", np.zeros(3))
    time.sleep(0.2)
""",
        timeout=30,
        TENSORTAP_CONTROL="1",
    )
    assert outcome.returncode == 0, outcome.err
    assert len(open_run(program.path).records) == 3


@pytest.mark.parametrize("name", ["rank-00000.msgpack", "rank-00000.status", "run-id"])
def test_a_fifo_in_place_of_a_file_of_the_run(program: Programs, name: str) -> None:
    program.path.mkdir(parents=True)
    os.mkfifo(program.path / name)
    outcome = program("dumper.dump('x', np.zeros(3))", timeout=30)
    assert outcome.returncode == 0, outcome.err
    if name != "rank-00000.msgpack":
        assert len(open_run(program.path).records) == 1


@pytest.mark.parametrize("name", ["rank-00000.msgpack", "rank-00000.status", "run-id"])
def test_nothing_is_written_through_a_link(program: Programs, tmp_path: Path, name: str) -> None:
    program.path.mkdir(parents=True)
    missing, precious = tmp_path / "missing", tmp_path / "precious"
    precious.write_text("keep me")
    for target in (missing, precious):
        (program.path / name).unlink(missing_ok=True)
        (program.path / name).symlink_to(target)
        outcome = program("dumper.dump('x', np.zeros(3))", timeout=30)
        assert outcome.returncode == 0, outcome.err
    assert not missing.exists()
    assert precious.read_text() == "keep me"


@pytest.mark.parametrize("command", ["ls", "show", "verify", "repair", "ctl"])
@pytest.mark.parametrize("name", ["rank-00001.msgpack", "rank-00001.status", "control/rank-00001.json", "run-id"])
def test_readers_do_not_wait_for_a_fifo(recording: Recording, light_host: ForkHost, command: str, name: str) -> None:
    recording.start().dump("x", [1, 2])
    recording.close()
    fifo = recording.path / name
    fifo.parent.mkdir(exist_ok=True)
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    words = [command, str(recording.path)] + (["status"] if command == "ctl" else [])
    result = light_host.run("dumper", *words, module=True, timeout=300)
    assert "Traceback" not in result.stderr
    if name == "rank-00001.msgpack" and command in ("ls", "show", "verify"):
        assert "rank-00001.msgpack" in result.stdout + result.stderr
        assert "regular file" in result.stdout + result.stderr
    if name == "rank-00001.msgpack" and command == "verify":
        assert result.returncode == 1


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir])
def test_a_dump_of_sglang_with_something_else_in_it(tmp_path: Path, torch_host: ForkHost, make: object) -> None:
    import torch

    name = "step=0___rank=0___dump_index={}___name=x___recompute_status=disabled.pt"
    torch.save({"value": torch.ones(3), "meta": {}}, tmp_path / name.format(1))
    make(str(tmp_path / name.format(2)))  # type: ignore[operator]
    result = torch_host.run("dumper", "ls", str(tmp_path), module=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "regular file" in result.stderr


def test_slow_clients_print_nothing_and_the_rest_is_served(program: Programs) -> None:
    outcome = program(
        """
import json, socket, urllib.request
dumper.step()
dumper.dump("x", np.zeros(3))
from dumper.control import http
port = int(sys.argv[1])
deadline = time.monotonic() + 10
while True:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        break
    except OSError:
        assert time.monotonic() < deadline
        time.sleep(0.05)
http._Handler.timeout = 1.0
slow = []
for number in range(300):
    client = socket.socket()
    client.settimeout(5)
    try:
        client.connect(("127.0.0.1", port))
        client.sendall(b"POST /dumper/get_state HTTP/1.1\\r\\nContent-Length: 10\\r\\n"[: 5 + number % 40])
    except OSError:
        pass
    slow.append(client)
assert threading.active_count() < 100, threading.active_count()
for client in slow[::2]:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\x01\\0\\0\\0\\0\\0\\0\\0")
    client.close()
time.sleep(3)
request = urllib.request.Request(f"http://127.0.0.1:{port}/dumper/get_state", data=b"{}", method="POST")
request.add_header("Authorization", "Bearer 12345678")
print(urllib.request.urlopen(request, timeout=20).status)
""",
        str(port := _free_port()),
        timeout=90,
        TENSORTAP_CONTROL="1",
        TENSORTAP_HTTP_PORT=str(port),
        TENSORTAP_HTTP_TOKEN="12345678",
    )
    assert outcome.returncode == 0, outcome.err
    assert outcome.err == ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_main_of_the_command_says_what_is_no_regular_file(
    recording: Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    recording.start().dump("x", [1])
    recording.close()
    os.mkfifo(recording.path / "rank-00007.msgpack")
    assert main(["verify", str(recording.path)]) == 1
    assert "no regular file" in capsys.readouterr().out

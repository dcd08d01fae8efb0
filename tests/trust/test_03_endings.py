"""However a process ends, every value is in the run or counted, and the process ends as it would have without us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from dumper import open_run
from tests.trust.conftest import PREAMBLE, Programs

pytestmark = pytest.mark.slow

LOOP = """
number = 0
def steps():
    # A model as fast as one can be: what it has made is written down past the recorder.
    global number
    made = np.memmap(sys.argv[1], dtype=np.int64, mode="r+", shape=(4,))
    value = np.zeros(16)
    while True:
        dumper.step()
        dumper.dump("x", value)
        number += 1
        made[0] = number
        if number == 10:
            print("ready", flush=True)
"""


def _start(program: Programs, code: str) -> subprocess.Popen[str]:
    (program.folder / "made").write_bytes(bytes(32))
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + LOOP + code, str(program.folder / "made")],
        env=program.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _made(program: Programs) -> int:
    return int.from_bytes((program.folder / "made").read_bytes()[:8], "little")


@pytest.mark.parametrize("attempt", range(3))
def test_sigterm_in_the_middle_of_steps(program: Programs, attempt: int) -> None:
    process = _start(program, "steps()")
    time.sleep(0.3 + 0.1 * attempt)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    run = open_run(program.path)
    counted = len(run.records) + run.losses
    # The value that was being handed over when the signal came may not have been written down.
    assert counted - _made(program) in (0, 1)
    assert "earlier run" not in err
    assert not {"unclosed", "corrupted"} & {problem.kind for problem in run.problems}
    # The model was stopped, and not left to run while the files were completed.
    assert run.losses < 500


def test_sigterm_while_a_second_thread_records(program: Programs) -> None:
    process = _start(program, "threading.Thread(target=steps, daemon=True).start()\nthreading.Event().wait()")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    run = open_run(program.path)
    assert len(run.records) + run.losses - _made(program) in (0, 1)
    assert "earlier run" not in err


def test_sigterm_twice(program: Programs) -> None:
    process = _start(program, "steps()")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    run = open_run(program.path)
    assert len(run.records) + run.losses - _made(program) in (0, 1)


def test_a_process_that_is_stuck_in_c_code_still_dies_of_sigterm(program: Programs) -> None:
    code = """
import ctypes
dumper.dump("x", np.zeros(3))
library = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
print("ready", flush=True)
library.pthread_mutex_lock(mutex)
library.pthread_mutex_lock(mutex)
"""
    process = _start(program, code)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("the process outlived SIGTERM")
    assert process.returncode == -signal.SIGTERM
    run = open_run(program.path)
    assert len(run.records) == 1
    assert not run.problems


def test_a_handler_that_the_program_sets_later_is_the_only_one(program: Programs) -> None:
    outcome = program("""
dumper.dump("x", np.zeros(3))
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.5)
dumper.dump("y", np.zeros(3))
assert seen == [1]
""")
    assert outcome.returncode == 0, outcome.err
    assert [record.name for record in outcome.run().records] == ["x", "y"]
    assert not outcome.run().problems


def test_the_wake_up_descriptor_of_the_program_is_left_alone(program: Programs) -> None:
    outcome = program("""
import socket
one, other = socket.socketpair()
one.setblocking(False)
signal.set_wakeup_fd(one.fileno())
dumper.dump("x", np.zeros(3))
assert signal.set_wakeup_fd(-1) == one.fileno()
signal.set_wakeup_fd(one.fileno())
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
""")
    assert outcome.returncode == -signal.SIGTERM, outcome.err
    assert not outcome.run().problems


def test_children_that_leave_at_once_are_counted(program: Programs) -> None:
    """Forked children that record and then call ``os._exit``, past everything that would complete their files."""
    outcome = program("""
dumper.dump("parent", np.zeros(3))
dumper.flush()
children = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        for number in range(50):
            dumper.dump("child", np.zeros(3))
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
""")
    assert outcome.returncode == 0, outcome.err
    run = outcome.run()
    assert len(run.records) == 1
    assert run.losses == 250


def test_a_child_is_not_taken_for_its_parent_by_a_signal(program: Programs) -> None:
    outcome = program("""
dumper.dump("parent", np.zeros(3))
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(9)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
assert os.WTERMSIG(status) == signal.SIGTERM, status
time.sleep(0.3)
dumper.dump("later", np.zeros(3))
""")
    assert outcome.returncode == 0, outcome.err
    run = outcome.run()
    assert [record.name for record in run.records] == ["parent", "later"]
    assert run.losses == 0


def test_values_after_the_end_are_counted(program: Programs) -> None:
    """Code that runs behind ``atexit``: other hooks, and threads that nobody waits for."""
    outcome = program("""
import atexit
def late():
    for number in range(7):
        dumper.dump("late", np.zeros(3))
atexit.register(late)
dumper.dump("x", np.zeros(3))
def later():
    dumper.dump("later", np.zeros(3))
    assert dumper.settings.enable
# Registered after ours, so that it runs before; and one that runs behind it.
atexit.register(later)
""")
    assert outcome.returncode == 0, outcome.err
    run = outcome.run()
    assert len(run.records) + run.losses == 9
    assert "earlier run" not in outcome.err


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux")
def test_a_fork_while_another_thread_records(program: Programs) -> None:
    outcome = program("""
going = True
def record():
    while going:
        dumper.dump("x", np.zeros(1000))
dumper.dump("x", np.zeros(3))
dumper.flush()
thread = threading.Thread(target=record)
thread.start()
for number in range(10):
    child = os.fork()
    if child == 0:
        dumper.dump("child", np.zeros(3))
        os._exit(0)
    os.waitpid(child, 0)
going = False
thread.join()
""")
    assert outcome.returncode == 0, outcome.err
    run = outcome.run()
    assert run.losses == 10

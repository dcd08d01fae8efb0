"""What each test costs in processor time, with everything that it started: a plugin of pytest, and a table of it.

``python -m pytest -p tests.harness.processor_time --processor-time FOLDER`` writes JSON lines, in a file for each
process of the suite; ``python -m tests.harness.processor_time FOLDER [--by test|function|file|folder]`` adds them up. A
test pays for what its fixtures do, and the first that uses a shared fixture for all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from collections import defaultdict
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

import pytest

TICKS = os.sysconf("SC_CLK_TCK")
BY = {
    "test": lambda name: name,
    "function": lambda name: name.partition("[")[0],
    "file": lambda name: name.partition("::")[0],
    "folder": lambda name: "/".join(name.split("/")[:2]),
}


def own_seconds() -> float:
    """Of this process, and of its descendants that have ended and were waited for."""
    mine, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + ended.ru_utime + ended.ru_stime


def seconds_of_the_living() -> float:
    """Of the descendants of this process that have not ended, and of those of theirs that have."""
    children, ticks = defaultdict(list), {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = Path("/proc", process, "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # it has just ended
        children[int(status[1])].append(int(process))
        ticks[int(process)] = sum(map(int, status[11:15]))
    alive = list(children[os.getpid()])
    for process in alive:
        alive += children[process]
    return sum(ticks[process] for process in alive) / TICKS


class _Account:
    def __init__(self, file: TextIOWrapper) -> None:
        self._file = file

    def write(self, name: str, seconds: float) -> None:
        self._file.write(json.dumps([name, round(seconds, 3)]) + "\n")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        # In this order, so that no test pays for the look at all processes.
        before = seconds_of_the_living()
        before += own_seconds()
        done = yield
        after = own_seconds()
        after += seconds_of_the_living()
        self.write(item.nodeid, after - before)
        return done

    def pytest_collection_finish(self) -> None:
        self.write("(start and collection)", own_seconds())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processor-time", type=Path, help="folder that takes what each test costs")


def pytest_configure(config: pytest.Config) -> None:
    folder: Path | None = config.getoption("--processor-time")
    runs_tests = "PYTEST_XDIST_WORKER" in os.environ or not getattr(config.option, "numprocesses", None)
    if folder is not None and runs_tests:
        folder.mkdir(parents=True, exist_ok=True)
        # Tests that run pytest themselves write files of their own.
        name = f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}-{os.getpid()}"
        config.pluginmanager.register(_Account((folder / f"{name}.jsonl").open("a", buffering=1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by", choices=BY, default="folder")
    parser.add_argument("--only", type=Path, help="file of test ids, one a line: what these cost")
    arguments = parser.parse_args()
    wanted = set(arguments.only.read_text().splitlines()) if arguments.only else None
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    for file in sorted(arguments.folder.glob("*.jsonl")):
        for name, cost in map(json.loads, file.read_text().splitlines()):
            if wanted is None or name in wanted:
                key = BY[arguments.by](name)
                seconds[key] += cost
                tests[key] += name[0] != "("
    for key, cost in sorted(seconds.items(), key=lambda one: -one[1]):
        print(f"{cost:8.1f} s {tests[key]:5} {key}")
    print(f"{sum(seconds.values()):8.1f} s {sum(tests.values()):5} in all")


if __name__ == "__main__":
    main()

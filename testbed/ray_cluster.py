"""A Ray cluster on the loopback interface, which asks for a token, as it is started with ``ray start``."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Cluster:
    address: str
    client_address: str | None
    """Of the server for Ray's client; None where its library is not installed."""
    head: psutil.Process

    def workers(self) -> list[psutil.Process]:
        """Processes that have begun to compare."""
        found = []
        for process in self.head.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.cmdline() and process.cmdline()[0].startswith("ray::Worker"):
                    found.append(process)
        return found


def ray_environment() -> Mapping[str, str]:
    """What Ray is to find in the environment when it is imported, here and in the cluster."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it listens on the machine's other addresses
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """A cluster of two workers. ``ray_environment`` is in the environment."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the path of a socket is short
    port, client_port = _free_port(), _free_port()
    more = [f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
    client = importlib.util.find_spec("grpc") is not None
    more += [f"--ray-client-server-port={client_port}"] if client else []
    try:
        with ray_node("--head", *more) as head:
            yield Cluster(f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}" if client else None, head)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def ray_node(*more: str) -> Iterator[psutil.Process]:
    """What ``ray start`` begins on this machine; it is ended with all its descendants."""
    # A second node is refused where all listen on the loopback interface alone, though it works on one machine.
    program = "import ray.scripts.scripts as scripts; scripts.ray_constants.ENABLE_RAY_CLUSTER = True; scripts.main()"
    command = [sys.executable, "-u", "-c", program, "start", "--block", "--node-ip-address=127.0.0.1"]
    command += ["--object-store-memory=80000000", "--disable-usage-stats", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    head = psutil.Process(process.pid)
    try:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise RuntimeError("".join(printed))
        yield head
    finally:
        everything = [*head.children(recursive=True), head]
        for one in everything:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()

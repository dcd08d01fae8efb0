"""The connection to a Ray cluster: made, watched, and kept out of what is printed."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, TextIO, cast
from urllib.parse import urlsplit

from comparator.errors import ComparatorError

_REACHED = 10.0
"""Seconds for a connection to the cluster to be made."""
_START = "start one with 'ray start --head', or say where it is with --address"
_ASKED_EVERY, _GIVEN_UP = 2.0, 20.0
"""Seconds between two questions to the head of the cluster, and without an answer until it is given up."""
_OF_RAY = "ray_"
"""How the names of Ray's threads begin."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at ``address``, as ``ray.init`` takes it; None: the one of the environment, or
    of this machine. One that there is already is used, and stays.

    Raises ComparatorError where Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise ComparatorError(f"--engine ray needs Ray ({error}); pip install 'tensortap[ray]'") from None
    with _messages_apart():
        if ray.is_initialized():
            yield
            return
        _connect(address)
        try:
            yield
        finally:
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it kept to say once
                ray.shutdown()


def _connect(address: str | None) -> None:
    import ray

    _try_to_reach(address)
    if (address or "").startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise ComparatorError(
            f"--address {address}: ray:// needs Ray's client, which is not here; pip install 'ray[client]' here and on "
            "the head of the cluster, or run this on a machine of the cluster with --address HOST:PORT"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is in the error
            ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        hint = "somebody listens there: is it a cluster, and has this process its token (RAY_AUTH_TOKEN)?"
        raise _not_reached(address, str(error), hint if address else _START) from None


def _try_to_reach(address: str | None) -> None:
    """Ray waits long for an address where nobody listens, and may then end the process."""
    parts = urlsplit(address or "")
    if "://" not in (address or ""):
        parts = urlsplit(f"//{address or ''}")
    try:
        port = parts.port
        if parts.hostname is None or port is None:
            return  # "auto", "local", or what Ray will refuse
        socket.create_connection((parts.hostname, port), _REACHED).close()
    except (OSError, ValueError) as error:
        raise _not_reached(address, str(error), _START) from None


def _not_reached(address: str | None, why: str, hint: str) -> ComparatorError:
    where = "on this machine" if address is None else f"at {address}"
    first = next(iter(why.strip().splitlines()), "")
    return ComparatorError(f"no Ray cluster {where}: {first}; {hint}")


@contextlib.contextmanager
def _messages_apart() -> Iterator[None]:
    """What Ray's threads print goes to standard error.

    Ray tells whoever is connected of machines that died, of workers that cannot be placed and the like on standard
    output, whatever ``log_to_driver`` says, and a report is printed there too.
    """
    with contextlib.redirect_stdout(cast(TextIO, _ByThread(sys.stdout))):
        yield


class _ByThread:
    """Standard output; for threads of Ray's, standard error."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def __getattr__(self, name: str) -> Any:
        ray = threading.current_thread().name.startswith(_OF_RAY)
        return getattr(sys.stderr if ray else self._output, name)


class Head:
    """The head of a cluster, asked now and then whether it is there: where it is gone for a minute, Ray ends the
    process, with an exit code that would be a verdict."""

    def __init__(self, place: tuple[str, int] | None) -> None:
        """``place``: host and port; None: it is not asked."""
        self._place = place
        self._asked = self._answered = time.monotonic()

    @classmethod
    def of_cluster(cls) -> Head:
        """Of the cluster that this process is connected to. Ray's client says itself that the connection broke off."""
        import ray
        from ray.util import client

        through_client: Any = client.ray
        if through_client.is_connected():
            return cls(None)
        host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
        return cls((host.strip("[]"), int(port)))

    def check(self) -> None:
        """Raises ComparatorError where it has not answered for long."""
        now = time.monotonic()
        if self._place is None or now - self._asked < _ASKED_EVERY:
            return
        self._asked = now
        try:
            socket.create_connection(self._place, 1.0).close()
        except OSError as error:
            if now - self._answered > _GIVEN_UP:
                raise lost_connection(f"its head does not answer ({error.strerror or error})") from None
        else:
            self._answered = now


def lost_connection(why: str) -> ComparatorError:
    """What is said where the cluster goes away."""
    return ComparatorError(f"the connection to the Ray cluster broke off: {why}")

"""Control over HTTP, for those who script SGLang's dumper that way: ``POST /dumper/{configure,get_state,reset}``.

Only on the loopback interface and only with a token: ``Authorization: Bearer TOKEN``. Requests go through the
same agreement as ``dumper ctl``; a reply is a list with one entry per rank, as SGLang's is.
"""

from __future__ import annotations

import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dumper.control.changes import resolve
from dumper.control.controller import ControlError, Pending, Rank, change, expected_ranks, pending_changes
from dumper.log_once import log

_PREFIX = "/dumper/"
_METHODS = ("configure", "get_state", "reset")
_LONGEST_BODY = 64 * 1024
_LEAST_TOKEN = 8
_MOST_CLIENTS = 32
"""That are served at the same time; more are turned away."""


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Server(ThreadingHTTPServer):
    """Serves a few clients at a time; what goes wrong with one is nothing for the log of the model."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._free = threading.BoundedSemaphore(_MOST_CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            # At once: whoever waits for a slow client would be one himself.
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log().debug("tensortap: http: a request from %s failed", client_address, exc_info=True)


class ControlServer:
    """A running endpoint."""

    def __init__(self, run: Path, port: int, token: str, timeout: float) -> None:
        handler = type("_RunHandler", (_Handler,), {"run": run, "token": token, "change_timeout": timeout})
        self._server = _Server(("127.0.0.1", port), handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="tensortap-http", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:  # there may be no more threads
            self._server.server_close()
            raise

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def serve(run: Path, port: int, token: str | None, timeout: float = 30.0) -> ControlServer | None:
    """Serve the run's control on 127.0.0.1; port 0 takes a free one. Never raises: says why it does not serve."""
    if token is None or len(token) < _LEAST_TOKEN:
        log().warning(
            "tensortap: nothing is served on port %d: TENSORTAP_HTTP_TOKEN must be set, to %d characters or more",
            port,
            _LEAST_TOKEN,
        )
        return None
    try:
        return ControlServer(run, port, token, timeout)
    except (OSError, RuntimeError) as error:
        log().warning("tensortap: control cannot be served on 127.0.0.1:%d: %s", port, error)
        return None


class _Handler(BaseHTTPRequestHandler):
    run: Path
    token: str
    change_timeout: float
    timeout = 10.0
    """Seconds for a client to send its request."""

    def do_POST(self) -> None:
        try:
            self._check_token()
            method = self._method()
            self._reply(200, self._perform(method, self._body()))
        except _Refused as refusal:
            self._reply(refusal.status, {"error": str(refusal)})
        except ValueError as error:
            self._reply(400, {"error": str(error)})
        except ControlError as error:
            self._reply(409, {"error": str(error)})

    def _not_post(self) -> None:
        self._reply(405, {"error": f"{self.command} is not possible here; use POST"}, {"Allow": "POST"})

    do_GET = do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _not_post

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "")
        if not given:
            raise _Refused(401, "send the token of TENSORTAP_HTTP_TOKEN as 'Authorization: Bearer TOKEN'")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise _Refused(403, "the token is not that of TENSORTAP_HTTP_TOKEN")

    def _method(self) -> str:
        path = self.path.partition("?")[0]
        method = path.removeprefix(_PREFIX)
        if not path.startswith(_PREFIX):
            raise _Refused(404, f"{path}: there are {', '.join(_PREFIX + known for known in _METHODS)}")
        if method not in _METHODS:
            raise _Refused(400, f"{path}: the methods are {', '.join(_METHODS)}")
        return method

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit():
            raise _Refused(400, f"Content-Length is {length!r}")
        if int(length) > _LONGEST_BODY:
            self.close_connection = True
            raise _Refused(413, f"the body is longer than {_LONGEST_BODY} bytes")
        try:
            raw = self.rfile.read(int(length))
        except TimeoutError:
            self.close_connection = True
            raise _Refused(408, f"the body of {length} bytes did not come") from None
        try:
            body = json.loads(raw or b"{}")
        except (ValueError, RecursionError):
            raise _Refused(400, "the body is not JSON") from None
        if not isinstance(body, dict):
            raise _Refused(400, f"the body is a JSON {type(body).__name__}, not an object")
        return body

    def _perform(self, method: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        if method != "configure" and body:
            raise _Refused(400, f"{method} takes no {next(iter(body))!r}")
        ranks = expected_ranks(self.run) if method == "get_state" or not body else []
        if method == "get_state":
            return [_state(rank, pending_changes(self.run, rank)) for rank in ranks]
        if method == "configure" and not body:
            return [{"rank": rank.rank, "effective": {}} for rank in ranks]
        changes = {"reset": True} if method == "reset" else body
        agreed = change(self.run, changes, timeout=self.change_timeout)
        return [{"rank": rank, "effective": agreed.effective} for rank in agreed.ranks]

    def _reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log().debug("tensortap: http: " + format, *args)


def _state(rank: Rank, pending: list[Pending]) -> dict[str, Any]:
    """What a rank says of itself, as SGLang's dumper does: ``config`` holds what was accepted, the step from which it
    holds may be still to come (``pending``)."""
    config = dict(rank.state.get("settings", {}))
    for change_ahead in pending:
        ahead = resolve(change_ahead.changes, change_ahead.step)
        if ahead.pop("reset", False):
            config.update(rank.state.get("initial", {}))
        config.update(ahead)
    if "run" in config:
        config["exp_name"] = config["run"]
    rest = {key: value for key, value in rank.state.items() if key not in ("settings", "initial")}
    return {
        "rank": rank.rank,
        "config": config,
        "step": max(rank.step, 0),
        "dump_index": rank.state.get("submitted", 0),
        "pending": [{"step": ahead.step, "changes": ahead.changes} for ahead in pending],
        **{key: value for key, value in rest.items() if key != "step"},
    }

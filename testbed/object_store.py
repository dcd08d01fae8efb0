"""A folder served as S3 on the loopback interface, with faults on demand: what a store on a bad day answers.

It speaks as much of S3 as a reader needs: ``GET`` of ranges with ``If-Match``, ``HEAD`` and ``ListObjectsV2``. Buckets
are the folders in the root. Of signatures the name of the key is checked.

``python -m testbed.object_store FOLDER`` serves until its standard input ends, and prints the address.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

KEY = "testkey"
SECRET = "testsecret-that-nobody-may-see"
_PAGE = 1000


@dataclass(frozen=True)
class Request:
    """What came in."""

    method: str
    path: str
    """Bucket and key, ``bucket/run/rank-00000.msgpack``; of a listing the bucket alone."""
    query: dict[str, str]
    range: tuple[int, int] | None
    """First byte, and the one after the last."""
    number: int
    """Of the request, from 0."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    status: int = 200
    """Answered instead of what was asked for, unless it is 200."""
    code: str = "InternalError"
    """The error in S3's words."""
    cut_after: int | None = None
    """Bytes of the content after which the connection is closed."""


@dataclass
class ObjectStore:
    """A server of the folder ``root``. ``requests`` lists what it was asked; ``fault`` decides what goes wrong."""

    root: Path
    latency: float = 0.0
    """Seconds before each answer."""
    fault: Callable[[Request], Fault | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    address: str = ""

    def environment(self) -> dict[str, str]:
        """What a client of this server needs to have in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def reset(self) -> None:
        """Forget requests and faults."""
        self.requests.clear()
        self.latency, self.fault = 0.0, lambda request: None

    @contextlib.contextmanager
    def running(self) -> Iterator[ObjectStore]:
        """Serve in threads of this process while the block runs."""
        server = _Server(("127.0.0.1", 0), _Handler)
        server.store = self
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    store: ObjectStore

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is none of the server's business."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        store = self.server.store
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        request = Request(
            self.command, urllib.parse.unquote(url.path).strip("/"), query, self._range(), len(store.requests)
        )
        store.requests.append(request)
        if store.latency:
            time.sleep(store.latency)
        fault = store.fault(request)
        if fault is not None and fault.status != 200:
            self._error(fault.status, fault.code)
        elif f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            self._error(403, "InvalidAccessKeyId")
        elif not (store.root / request.path.split("/")[0]).is_dir():
            self._error(404, "NoSuchBucket")
        elif "list-type" in query:
            self._list(store.root / request.path, query)
        else:
            self._object(store.root / request.path, request, fault)

    def _range(self) -> tuple[int, int] | None:
        text = self.headers.get("Range")
        if text is None:
            return None
        first, _, last = text.removeprefix("bytes=").partition("-")
        return (-int(last), 0) if not first else (int(first), int(last) + 1 if last else sys.maxsize)

    def _object(self, path: Path, request: Request, fault: Fault | None) -> None:
        try:
            file = path.open("rb")
        except OSError:
            self._error(404, "NoSuchKey")
            return
        with file:
            status = os.fstat(file.fileno())
            size = status.st_size
            tag = '"' + hashlib.md5(f"{size} {status.st_mtime_ns} {status.st_ino}".encode()).hexdigest() + '"'
            if self.headers.get("If-Match", tag) != tag:
                self._error(412, "PreconditionFailed")
                return
            first, end = request.range or (0, size)
            first, end = (max(0, size + first), size) if first < 0 else (first, min(end, size))
            if request.range is not None and first >= end:
                self._error(416, "InvalidRange")
                return
            self.send_response(200 if request.range is None else 206)
            self.send_header("ETag", tag)
            self.send_header("Last-Modified", self.date_time_string(int(status.st_mtime)))
            self.send_header("Content-Length", str(end - first))
            if request.range is not None:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
            self.end_headers()
            if request.method == "HEAD":
                return
            self.wfile.flush()
            cut = fault is not None and fault.cut_after is not None
            length = min(end - first, fault.cut_after or 0) if cut and fault is not None else end - first
            if length:
                self.connection.sendfile(file, first, length)
            if cut:
                self.close_connection = True

    def _list(self, bucket: Path, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        folder = prefix.rpartition("/")[0]
        keys = []
        if delimiter == "/":
            found = os.scandir(bucket / folder) if (bucket / folder).is_dir() else ()
            start = f"{folder}/" if folder else ""
            keys = [f"{start}{entry.name}{'/.' if entry.is_dir() else ''}" for entry in found]
        else:
            for inner, _, files in os.walk(bucket):
                keys += [str((Path(inner) / name).relative_to(bucket)) for name in files]
        entries: dict[str, bool] = {}
        for key in sorted(key for key in keys if key.startswith(prefix)):
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            entries[prefix + head + found if found else key] = bool(found)
        after = query.get("continuation-token", query.get("start-after", ""))
        left = [entry for entry in entries if entry > after]
        page = left[: min(_PAGE, int(query.get("max-keys", _PAGE)))]
        parts = ['<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>']
        parts.append(f"<IsTruncated>{'true' if len(left) > len(page) else 'false'}</IsTruncated>")
        if len(left) > len(page):
            parts.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        for entry in page:
            if entries[entry]:
                parts.append(f"<CommonPrefixes><Prefix>{escape(entry)}</Prefix></CommonPrefixes>")
            else:
                size = os.stat(f"{bucket}/{entry}").st_size
                parts.append(
                    f"<Contents><Key>{escape(entry)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                    f"<ETag>&quot;listed&quot;</ETag><Size>{size}</Size></Contents>"
                )
        self._answer(200, "".join([*parts, "</ListBucketResult>"]).encode())

    def _error(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
        self._answer(status, body.encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main() -> None:
    latency = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    with ObjectStore(Path(sys.argv[1]), latency).running() as store:
        print(store.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

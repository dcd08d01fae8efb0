"""moto's server, which many test against in the place of S3, on the loopback interface."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

BUCKET = "s3://runs"


@contextmanager
def moto_server() -> Iterator[str]:
    """Its address."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("werkzeug.serving.WSGIRequestHandler.log", lambda *_: None)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield f"http://{host}:{port}"
        finally:
            server.stop()


def environment(address: str) -> Mapping[str, str]:
    """What obstore reads of it, for the server at an address."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


def make_bucket(address: str) -> None:
    """``BUCKET``, or nothing where it is there."""
    urllib.request.urlopen(urllib.request.Request(f"{address}/runs", method="PUT")).close()


def upload(folder: Path, name: str) -> str:
    """Put the files of a folder into the bucket, with the environment set; returns their address."""
    import obstore
    from obstore.store import from_url

    store = from_url(BUCKET, client_options={"allow_http": True})
    for file in folder.iterdir():
        if file.is_file():
            obstore.put(store, f"{name}/{file.name}", file)
    return f"{BUCKET}/{name}"

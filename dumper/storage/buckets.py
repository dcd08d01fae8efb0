"""Buckets of object storage, through obstore (https://developmentseed.org/obstore): the one module that knows it.

It takes credentials, regions and endpoints from the environment, from the machine's or container's role, or from a
token that is mounted, each in the way of its cloud, and repeats requests that fail, also in the middle of their answer.
Its messages may hold parts of keys, so that none of them is passed on: only the status and the storage's own code.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.store import from_url

from dumper.storage.places import Listing, Part, StorageError

if TYPE_CHECKING:
    from obstore import GetOptions

RETRIES: dict[str, Any] = {
    "max_retries": 7,
    "backoff": {"init_backoff": datetime.timedelta(milliseconds=100), "base": 2},
    "retry_timeout": datetime.timedelta(seconds=90),
}
"""Of one request; together they wait for 13 seconds at most."""
_STATUS = re.compile(r"status code: (\d{3}) ?([A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>|\"code\": ?\"?(\w{1,60})")
_CHANGED = "the object changed while it was read; begin again once it is complete"
_KINDS = {"FileNotFoundError": "there is no such object", "PreconditionError": _CHANGED}
_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "ContainerNotFound": "there is no such container",
}
_METADATA = "169.254.169.254"
"""Where the machines of all clouds ask for their role's credentials, when there are no others."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a role",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or a role",
}
_RETRIED = " after retries"
_CONNECTION = (
    ("dns error", "the name of the server is not known"),
    ("onnection refused", "no server answers"),
    ("certificate", "the certificate of the server is not trusted"),
    ("timed out", "the server did not answer in time"),
    ("operation timed", "the server did not answer in time"),
    ("body error", "the connection broke off in the middle of the answer"),
    ("error sending request", "the server cannot be reached"),
)


class Bucket:
    """A ``Store`` on S3, Google Cloud Storage or Azure, and on what speaks like them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._opened: Any = None

    @property
    def _store(self) -> Any:
        if self._opened is None:
            try:
                self._opened = _open(self.address)
            except Exception as error:
                raise self._explained(error, "") from None
        return self._opened

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return Bucket, (self.address,)

    def list(self, key: str) -> Listing:
        try:
            found = obstore.list_with_delimiter(self._store, key or None)
        except StorageError:
            raise
        except Exception as error:
            raise self._explained(error, key) from None
        # An object that is called as the folder stands for it in some tools.
        files = {_name(entry["path"]): int(entry["size"]) for entry in found["objects"] if entry["path"] != key}
        return Listing(files, [_name(folder) for folder in found["common_prefixes"]])

    def read(self, key: str, start: int, end: int, tag: str | None) -> Part:
        options: GetOptions = {"range": (start, end)}
        if tag is not None and not tag.startswith("W/"):
            options["if_match"] = tag
        try:
            found = obstore.get(self._store, key, options=options)
            data = memoryview(found.bytes()).cast("B")
        except StorageError:
            raise
        except Exception as error:
            raise self._explained(error, key) from None
        part = Part(data, int(found.meta["size"]), found.meta["e_tag"])
        if tag is not None and part.tag != tag:
            raise StorageError(self._place(key), _CHANGED)
        if len(data) != min(end, part.size) - start:
            raise StorageError(self._place(key), f"{end - start} bytes were asked for, and {len(data)} came")
        return part

    def _place(self, key: str) -> str:
        return f"{self.address}/{key}" if key else self.address

    def _explained(self, error: Exception, key: str) -> StorageError:
        words = _in_words(error, self.address)
        return StorageError(self._place(key), words, words.endswith(_RETRIED))


def _open(address: str) -> Any:
    options: dict[str, Any] = {"timeout": datetime.timedelta(seconds=120)}
    if any(value.startswith("http://") for name, value in os.environ.items() if "ENDPOINT" in name):
        options["allow_http"] = True  # as the user's own endpoint says
    more: dict[str, Any] = {}
    if address.startswith("s3") and (provider := _profile()) is not None:
        more["credential_provider"] = provider
    make: Callable[..., Any] = from_url
    return make(address, client_options=options, retry_config=RETRIES, **more)


def _profile() -> Any:
    """Credentials of a profile in ``~/.aws``, where one is asked for or there is nothing else; boto3 reads these."""
    named = os.environ.get("AWS_PROFILE")
    files = [os.environ.get("AWS_SHARED_CREDENTIALS_FILE"), "~/.aws/credentials", "~/.aws/config"]
    there = any(name and Path(name).expanduser().is_file() for name in files)
    if not named and ("AWS_ACCESS_KEY_ID" in os.environ or "AWS_SKIP_SIGNATURE" in os.environ or not there):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return Boto3CredentialProvider()
    except ImportError:
        return None


def _in_words(error: BaseException, address: str) -> str:
    """What went wrong, without anything that the library says in its own words."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    said = next(filter(None, code.groups()), "") if code else ""
    answer = " ".join(filter(None, (status[1], said or status[2].strip()))) if status else ""
    credentials = _CREDENTIALS[{"g": "gs", "a": "az"}.get(address[0], "s3")]
    return (
        _REASONS.get(said)
        or _without_credentials(text, credentials)
        or _refused(answer, type(error).__name__, credentials)
        or _KINDS.get(type(error).__name__)
        or _answered(answer)
        or next((f"{words},{_RETRIED}" for mark, words in _CONNECTION if mark in text), "")
        or f"it cannot be read ({type(error).__name__})"
    )


def _without_credentials(text: str, credentials: str) -> str | None:
    if _METADATA in text:
        return f"there are no credentials: set {credentials} (docs/scale.md)"
    if "Missing SecretAccessKey" in text or "Missing AccessKeyId" in text:
        return f"half of the credentials is missing: set {credentials} (docs/scale.md)"
    if "Account must be specified" in text:
        return f"the account is not known: set {credentials} (docs/scale.md)"
    return None


def _refused(answer: str, kind: str, credentials: str) -> str | None:
    if kind not in ("PermissionDeniedError", "UnauthenticatedError") and not answer.startswith(("401", "403")):
        return None
    return f"access is refused ({answer or kind}); credentials are {credentials} (docs/scale.md)"


def _answered(answer: str) -> str | None:
    if not answer:
        return None
    return f"the storage answers {answer}{_RETRIED if answer.startswith(('5', '429')) else ''}"


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]

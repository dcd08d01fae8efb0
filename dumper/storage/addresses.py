"""What a user gives as the path of a run: a folder of this machine, or an address such as ``s3://bucket/runs/tp2``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dumper.storage.places import Place, StoredPath

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
"""What an address begins with."""
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<bucket>[^/]*)(?:/(?P<key>.*))?", re.DOTALL)
_COLLAPSED = re.compile(rf"(?P<scheme>{'|'.join(SCHEMES)}):/(?P<rest>[^/].*)", re.DOTALL)
"""An address that went through ``pathlib.Path``."""


class AddressError(ValueError):
    """An address that cannot be used as it is; the message says why, and nothing that is secret."""


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether a text is an address and not the path of something on this machine."""
    return _as_address(text) is not None


def place_of(given: str | os.PathLike[str] | StoredPath) -> Place:
    """The folder that a path or an address means.

    Raises AddressError for an address that cannot be used, and for one where the library for it is missing. Nothing is
    read yet.
    """
    if isinstance(given, StoredPath):
        return given
    address = _as_address(given)
    if address is None:
        return Path(given)
    found = _ADDRESS.fullmatch(address)
    assert found is not None
    scheme, bucket, key = found["scheme"].lower(), found["bucket"], found["key"] or ""
    shown = shown_address(address)
    if scheme == "file":
        return Path("/" + key)
    if scheme not in SCHEMES:
        raise AddressError(
            f"{shown}: {scheme}:// is not known; there are {', '.join(name + '://' for name in SCHEMES)}"
        )
    if _user_of(scheme, bucket) or "?" in address:
        raise AddressError(
            f"{shown}: an address holds no credentials and no settings; put them into the environment (docs/scale.md)"
        )
    if not bucket:
        raise AddressError(f"{shown} names no bucket; write {scheme}://BUCKET/FOLDER")
    if any(part in (".", "..") for part in key.split("/")):
        raise AddressError(f"{shown}: an address has no '.' and no '..' in it")
    try:
        from dumper.storage.buckets import Bucket
        from dumper.storage.ranges import Reads
    except ImportError as error:
        raise AddressError(
            f"{shown}: object storage needs the library obstore ({error}); pip install 'tensortap[storage]'"
        ) from None
    return StoredPath(Reads(Bucket(f"{scheme}://{bucket}")), key)


def shown_address(text: str) -> str:
    """An address without what may be a secret in it; other text as it is."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return text
    scheme, bucket = found["scheme"], found["bucket"]
    user = _user_of(scheme.lower(), bucket)
    rest = text[len(scheme) + 3 :].split("?", maxsplit=1)[0]
    return f"{scheme}://" + (f"***@{rest.removeprefix(user + '@')}" if user else rest) + ("?***" if "?" in text else "")


def _user_of(scheme: str, bucket: str) -> str:
    """What stands before the ``@``, unless it is the name of a container (``abfs://container@account…``)."""
    user = bucket.rpartition("@")[0]
    return "" if scheme.startswith("abfs") and ":" not in user else user


def _as_address(given: str | os.PathLike[str]) -> str | None:
    text = os.fspath(given)
    if isinstance(given, str) and _ADDRESS.fullmatch(text):
        return None if os.path.exists(text) else text
    found = _COLLAPSED.fullmatch(text)
    if found is not None and not os.path.lexists(text):
        return f"{found['scheme']}://{found['rest']}"
    return None

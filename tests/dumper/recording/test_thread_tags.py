"""What torch carries from thread to thread stays alive, whichever of its releases holds it."""

from __future__ import annotations

import sys

import pytest

from dumper.recording import context


class Torch:
    """Takes a reference of its own, or forgets to."""

    def __init__(self, takes_one: bool) -> None:
        self.takes_one = takes_one
        self.held: list[object] = []

    def _stash_obj_in_tls(self, key: str, value: object) -> None:
        if self.takes_one:
            self.held.append(value)


@pytest.mark.parametrize("takes_one", [True, False])
def test_there_is_one_reference_more_than_before(takes_one: bool) -> None:
    torch, tags = Torch(takes_one), {1: {"layer_id": 3}}
    before = sys.getrefcount(tags)
    context._stash(torch, tags)
    assert sys.getrefcount(tags) == before + 1

from collections.abc import Sequence
from typing import Any

def write_whole(descriptor: int, buffers: Sequence[Any], /) -> None: ...

from typing import Any

Side = tuple[float, float, float, float, float, int, int]

def limit(most: int, /) -> int: ...
def state() -> bytearray: ...
def measure(
    x: Any,
    kind_x: int,
    table_x: Any,
    y: Any,
    kind_y: int,
    table_y: Any,
    size: int,
    row_length: int,
    wide: bool,
    accept: bool,
    rows: Any,
    energy: Any,
    leaves_out: bool,
    state: bytearray,
    lines: Any,
    channels: Any,
    taken: Any,
    digests: Any,
    /,
) -> None: ...
def digests() -> bytearray | None: ...
def digest_blocks(digests: bytearray, found: Any, blocks: int, /) -> None: ...
def digest(digests: bytearray, of_second: int, data: Any, /) -> int: ...
def join(state: bytearray, of_next_rows: bytearray, lines: Any, /) -> None: ...
def measure_many(
    x: Any,
    starts_x: Any,
    kind_x: int,
    table_x: Any,
    y: Any,
    starts_y: Any,
    kind_y: int,
    table_y: Any,
    sizes: Any,
    row_length: int,
    wide: bool,
    accept: bool,
    rows: Any,
    energies: Any,
    numbers: Any,
    counts: Any,
    /,
) -> None: ...
def sums(state: bytearray, /) -> tuple[Side, Side, float, float, float, float, float, int, int, float, int]: ...

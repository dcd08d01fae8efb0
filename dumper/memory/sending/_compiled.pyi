def send(
    functions: tuple[int, int, int, int],
    own: int,
    event: int,
    stream: int | None,
    host: int,
    device: int,
    nbytes: int,
    word: int,
    one: int,
    /,
) -> tuple[int, int]:
    """``functions``: the addresses of StreamIsCapturing, EventRecord, StreamWaitEvent and MemcpyAsync.

    Returns what came of it (0 done, 1 ``stream`` is being captured and nothing was copied, 2 to 5 which of them failed)
    and its code."""

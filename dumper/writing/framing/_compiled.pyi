from collections import deque
from typing import Any

class Framer:
    def __init__(self, description: type, shared: type, steps_counted: int, /) -> None: ...
    def encode(
        self, records: list[Any], first: int, position: int, order: int, buffers: list[Any], /
    ) -> tuple[int, int, bytearray]: ...

def take_values(queue: deque[Any], most: int, /) -> tuple[list[Any], int]: ...

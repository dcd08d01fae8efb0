"""Directories of ``.pt`` files, as SGLang's own dumper writes them."""

from dumper.readers.sglang.dump import holds_dump, open_sglang_dump
from dumper.reading.protocol import Reader

READER = Reader(".pt", holds_dump, open_sglang_dump, order=1)

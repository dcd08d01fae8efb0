"""Runs in tensortap's own format: one stream of frames per rank (docs/format.md)."""

from dumper.readers.streams.opening import holds_streams, open_streams, runs_inside
from dumper.reading.protocol import Reader

READER = Reader("rank-*.msgpack", holds_streams, open_streams, runs_inside, from_storage=True, open_with=open_streams)

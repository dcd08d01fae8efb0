"""The on-disk format, version 1: encoding and decoding of bytes, and nothing else. Specified in docs/format.md."""

"""One folder for each kind of recording that can be read.

A folder makes itself known by a ``READER`` (``dumper.reading.protocol.Reader``) in its ``__init__``; ``open_run`` finds
it there, and nothing else needs to be changed.
"""

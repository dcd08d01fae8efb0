"""Dumps of msprobe, MindStudio's debugger: ``step0/rank0/dump.json`` with statistics, and tensors beside it."""

from dumper.readers.msprobe.dump import holds_dump, open_msprobe_dump
from dumper.reading.protocol import Reader

READER = Reader("step*/rank*/dump.json", holds_dump, open_msprobe_dump)

"""A kernel launch that compiled code makes by itself."""

from __future__ import annotations

from typing import NamedTuple

MOST_ARGUMENTS = 16


class DirectLaunch(NamedTuple):
    """What ``cuLaunchKernel`` is given for a kernel all of whose parameters have 8 bytes ("CUDA Driver API", Execution
    Control); dumper/recording/shortcut reads it. The grid and the blocks have one dimension, and there are no clusters.
    """

    function: int
    """Its handle, of the device that it was loaded on."""
    programs: int
    """Blocks of the grid."""
    threads: int
    """Of a block."""
    shared: int
    """Bytes of dynamic shared memory."""
    arguments: tuple[int, ...]
    """At most MOST_ARGUMENTS, each as 64 bits without a sign."""
    value_at: int
    """Which argument is the address of the value; what is there already is replaced."""
    out_at: int
    """The same for the address of the result."""

"""What the commands beside the benchmark begin with: a decoder, and a folder for what is recorded of it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.gpu.decoder import ON_DEVICE, TINY, Decoder
from testbed.devices import why_no_gpu


def can_measure(on_cpu: bool) -> bool:
    """Whether there is a device, or the CPU is to do; says why not."""
    reason = why_no_gpu()
    if reason and not on_cpu:
        print(f"not measured: {reason} (--cpu tries it with a tiny model)", file=sys.stderr)
        return False
    return True


@contextmanager
def decoder_and_folder(on_cpu: bool) -> Iterator[tuple[Decoder, Path]]:
    """Without gradients within; the folder is deleted behind it."""
    folder = Path(tempfile.mkdtemp(prefix="tensortap-gpu-"))
    try:
        with torch.no_grad():
            yield Decoder(TINY if on_cpu else ON_DEVICE, "cpu" if on_cpu else "cuda"), folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

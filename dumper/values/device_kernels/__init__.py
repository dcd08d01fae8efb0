"""Statistics and fingerprints of tensors on a CUDA device, by Triton kernels: one launch, results of some bytes.

``single`` launches for one tensor, ``many`` for the tensors of a CUDA graph at once, both through ``launching``. The
kernels are in ``statistics`` and ``fingerprints``; ``decoding`` reads elements for them, ``exchange`` is what the
programs of a launch leave each other. Where there is no Triton, or a type that the kernels do not know,
``dumper/values/measures.py`` and ``dumper/values/fingerprint`` do the same.
"""

from __future__ import annotations

import functools
import importlib.util


@functools.cache
def available() -> bool:
    """Whether kernels can be compiled here: for GPUs of NVIDIA, with the Triton that comes with torch."""
    import torch

    return torch.version.cuda is not None and importlib.util.find_spec("triton") is not None

"""The compiled modules. Where they cannot be built the packages work without them, on numpy alone."""

import zlib
from pathlib import Path

from setuptools import Extension, setup

KERNEL = "comparator/measure/kernel"
TORCH_SUMS = "comparator/measure/torch_sums"
ADDING = "comparator/align/adding"
QUOTING = "comparator/measure/quoting"
PASSES = "comparator/diagnosis/kernel"
FINGERPRINT = "dumper/values/fingerprint"
CRC32 = "dumper/values/crc32"
WHOLE_WRITE = "dumper/writing/whole_write"
SHORTCUT = "dumper/recording/shortcut"
SENDING = "dumper/memory/sending"
FRAMING = "dumper/writing/framing"
CHECKING = "dumper/format/checking"
PT_FORMAT = "dumper/readers/sglang/pt_format"
PAGES = "tensortap/lost_pages"
STATISTICS = "dumper/values/statistics"
HALF = f"{STATISTICS}/_half.h"
OF_KERNEL = (HALF, f"{PASSES}/_widen.h", f"{FRAMING}/_xxh3_parts.h")


def extension(folder: str, *flags: str, others: tuple[str, ...] = ()) -> Extension:
    """The module ``_compiled`` of a folder. ``others``: headers of other folders (``HEADERS_ELSEWHERE`` there).

    It says which sources it was built from, since one that is older than the Python code around it must not be used
    (``tensortap/compiled.py`` computes the same).
    """
    digest = 0
    headers = sorted(map(str, Path(folder).glob("*.h")))
    for source in (*sorted([*headers, *map(str, Path(folder).glob("*.c"))]), *others):
        digest = zlib.crc32(Path(source).read_bytes(), digest)
    return Extension(
        f"{folder.replace('/', '.')}._compiled",
        [f"{folder}/_compiled.c"],
        depends=[*headers, *others, "setup.py"],  # which has the flags
        include_dirs=sorted({str(Path(other).parent) for other in others}),
        define_macros=[("SOURCES", f'"{digest:08x}"')],
        extra_compile_args=list(flags),
        optional=True,
    )


setup(
    ext_modules=[
        # Without contraction, so that both kernels round alike.
        extension(KERNEL, "-O3", "-ffp-contract=off", "-fno-math-errno", others=OF_KERNEL),
        extension(TORCH_SUMS, "-O3", "-ffp-contract=off", others=(HALF,)),
        extension(ADDING, "-O3", "-ffp-contract=off", others=(HALF,)),
        extension(QUOTING, "-O2"),
        extension(PASSES, "-O3", "-fno-math-errno", "-fno-trapping-math", others=(HALF,)),
        extension(FINGERPRINT, "-O3"),
        extension(STATISTICS, "-O3", "-ffp-contract=off"),
        extension(CRC32, "-O3"),
        extension(WHOLE_WRITE, "-O2"),
        extension(SHORTCUT, "-O2", others=(f"{FRAMING}/_slots.h",)),
        extension(FRAMING, "-O3"),
        extension(CHECKING, "-O3", others=(f"{FRAMING}/_xxh3.h", f"{FRAMING}/_xxh3_parts.h")),
        extension(SENDING, "-O2"),
        extension(PT_FORMAT, "-O2"),
        extension(PAGES, "-O2"),
    ]
)

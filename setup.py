"""The compiled modules. Where they cannot be built the packages work without them, on numpy alone."""

from setuptools import Extension, setup

KERNEL = "comparator/measure/kernel"
PASSES = "comparator/diagnosis/kernel"
FINGERPRINT = "dumper/values/fingerprint"

setup(
    ext_modules=[
        Extension(
            "comparator.measure.kernel._compiled",
            [f"{KERNEL}/_compiled.c"],
            depends=[f"{KERNEL}/_types.h", f"{KERNEL}/_rows.h", f"{PASSES}/_half.h"],
            include_dirs=[PASSES],
            # Without contraction, so that both kernels round alike.
            extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno"],
            optional=True,
        ),
        Extension(
            "comparator.diagnosis.kernel._compiled",
            [f"{PASSES}/_compiled.c"],
            depends=[f"{PASSES}/_loops.h", f"{PASSES}/_half.h"],
            extra_compile_args=["-O3", "-fno-math-errno"],
            optional=True,
        ),
        Extension(
            "dumper.values.fingerprint._compiled",
            [f"{FINGERPRINT}/_compiled.c"],
            depends=[f"{FINGERPRINT}/_block.h"],
            extra_compile_args=["-O3"],
            optional=True,
        ),
        Extension(
            "dumper.recording.shortcut._compiled",
            ["dumper/recording/shortcut/_compiled.c"],
            extra_compile_args=["-O2"],
            optional=True,
        ),
    ]
)

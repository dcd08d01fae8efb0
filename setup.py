"""The one compiled module. Where it cannot be built the package works without it, on numpy alone."""

from setuptools import Extension, setup

KERNEL = "comparator/measure/kernel"

setup(
    ext_modules=[
        Extension(
            "comparator.measure.kernel._compiled",
            [f"{KERNEL}/_compiled.c"],
            depends=[f"{KERNEL}/_types.h", f"{KERNEL}/_rows.h"],
            # Without contraction, so that both kernels round alike.
            extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno"],
            optional=True,
        )
    ]
)

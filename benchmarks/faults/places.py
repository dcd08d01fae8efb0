"""Where recordings lie, and which are to be made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.catalogue import Fault, load
from benchmarks.faults.engines.protocol import REFERENCE, Job
from benchmarks.faults.engines.registry import KNOWN, NAMES, engine


def clean_run(root: Path, engine_name: str, family: str, variant: str) -> Path:
    return root / "clean" / f"{KNOWN[engine_name].folder}-{family}" / variant


def faulty_run(root: Path, fault: Fault, family: str, variant: str) -> Path:
    return root / "faults" / fault.engine / family / f"{fault.name}--{variant}"


def variant_of(fault: Fault) -> str:
    """The variant under which a fault is recorded."""
    return fault.variants[0] if fault.variants else KNOWN[fault.engine].usual


def other_variant(fault: Fault) -> str:
    """A clean variant with other numerics that the fault is compared with too."""
    known = KNOWN[fault.engine]
    return known.usual if variant_of(fault) == known.other else known.other


def clean_jobs(root: Path, engine_name: str) -> list[Job]:
    """All clean recordings of an engine."""
    chosen = engine(engine_name)
    return [
        Job(family, variant, clean_run(root, engine_name, family, variant))
        for family in chosen.families()
        for variant in chosen.variants(family)
    ]


def fault_jobs(root: Path, engine_name: str) -> list[Job]:
    """All recordings of an engine's faults."""
    return [
        Job(
            family,
            variant_of(fault),
            faulty_run(root, fault, family, variant_of(fault)),
            (fault.config,),
        )
        for fault in load(engine_name)
        for family in fault.families
    ]


def clean_families(root: Path) -> Iterator[tuple[str, list[Path]]]:
    """The recorded families, with the runs that are to agree with each other."""
    for folder in sorted((root / "clean").glob("*")):
        runs = sorted(run for run in folder.glob("[!.]*") if run.name != REFERENCE)
        if runs:
            yield folder.name, runs


def fault_pairs(root: Path) -> Iterator[tuple[Fault, str, Path, Path, bool]]:
    """Fault, family, clean baseline, target, and whether both were computed the same way; of what is recorded."""
    for name in NAMES:
        for fault in load(name):
            for family in fault.families:
                variant = variant_of(fault)
                target = faulty_run(root, fault, family, variant)
                for chosen in (variant, other_variant(fault)):
                    baseline = clean_run(root, name, family, chosen)
                    if target.exists() and baseline.exists():
                        yield fault, family, baseline, target, chosen == variant

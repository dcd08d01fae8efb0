"""The tables of docs/faults.md: false alarms on clean pairs, and what became of each planted fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults.catalogue import Fault, load
from benchmarks.faults.outcomes import Judged, read_outcomes
from benchmarks.report import table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
CONFIDENCE = 0.95
ENGINES = {
    "tensor_parallel": "the tensor-parallel Transformer",
    "transformers": "Transformers",
    "sglang": "SGLang's servers",
}
FINER = ("-float16", "-float32")
"""How the names of families end that are not in bfloat16."""
LARGE = 3.0
"""Floors from which every fault is to be found."""


def print_tables(root: Path, write: bool) -> None:
    """Print the page, and with ``write`` put it into docs/faults.md."""
    text = page(read_outcomes(root), load())
    print(text)
    if write:
        DOCUMENT.write_text(text, encoding="utf-8")


def page(outcomes: Sequence[Judged], catalogue: Sequence[Fault]) -> str:
    """The whole page, as Markdown."""
    planted = [one for one in outcomes if one.kind == "faults" and one.expected is not None]
    faults = effective(planted)
    harmless = [one for one in outcomes if one.kind == "faults" and one.expected is None]
    clean = [one for one in outcomes if one.kind == "clean" and one.differs]
    count = sum(fault.is_fault for fault in catalogue)
    sources = {f"{fault.engine}/{fault.name}": fault.source for fault in catalogue if fault.source}
    return f"""# Planted faults and clean pairs

`python -m benchmarks.faults record`, `judge` and `table --write` make this page: how often the comparator calls two
runs different that agree but for rounding, and what it says where a fault was planted. `benchmarks/faults/catalogue`
holds the faults as patch configs, one file each: {count} faults, of which {len(sources)} rebuild bugs that people have
reported, in small. Runs are compared with `--token-aligner smart`.

## Clean pairs

Variants of a family compute one model on the same prompts: other attention kernels, batches, chunks, partial sums,
ranks, norms, orders of accumulation. `servers` are real servers of SGLang and vLLM under several parallel layouts, and
Transformers with the same checkpoints (in float32 too), so that many of their pairs are of two engines; `gloo` is a
tensor-parallel Transformer of our own on 1, 2 and 4 ranks. Pairs that are the same bit for bit are left out.

{clean_table(clean)}

{bound(clean)}

## Faults

Each fault is compared with a clean run of the same numerics, and with one of others. *Found*: the runs are said to
differ. *Placed*: the first difference is at the tap and layer where the fault is. The size is the relative L2 error at
that tap, without rounding; *floors* is the error introduced there as a multiple of the floor of rounding, of the
median row (0 for a fault in few rows).

{len({one.fault for one in planted})} of the {count} faults have been recorded and compared. {rounded_away(planted)}

{summary_table(faults, sources)}

{smallest(faults)}

{fault_table(faults, sources)}

## No faults

What changes rows that no token reads, or the order of accumulation, and has to pass.

{harmless_table(harmless)}
"""


def _planting(one: Judged) -> tuple[str | None, str]:
    return one.fault, one.family


def _without_effect(planted: Sequence[Judged]) -> set[tuple[str | None, str]]:
    """Faults and families in which the run with the fault is the clean one of the same numerics, bit for bit."""
    return {_planting(one) for one in planted if one.same_numerics and not one.differs}


def effective(planted: Sequence[Judged]) -> list[Judged]:
    """Without the pairs whose fault changes no bit in the dtype of the model."""
    lost = _without_effect(planted)
    return [one for one in planted if _planting(one) not in lost]


def rounded_away(planted: Sequence[Judged]) -> str:
    """A sentence on what ``effective`` leaves out."""
    lost = sorted(f"{fault} in {family}" for fault, family in _without_effect(planted))
    if not lost:
        return ""
    return f"Not counted, because the dtype rounds the fault away and no bit differs: {', '.join(lost)}."


def clean_table(clean: Sequence[Judged]) -> str:
    families = sorted({one.family for one in clean})
    groups = [(family, [one for one in clean if one.family == family]) for family in families] + [("all", list(clean))]
    rows = []
    for name, chosen in groups:
        alarms = sum(one.verdict != "agree" for one in chosen)
        nearest = max((one.nearest for one in chosen), default=0.0)
        runs = len({run for one in chosen for run in (one.baseline, one.target)})
        rows.append((name, str(runs), str(len(chosen)), str(alarms), f"{nearest:.2f}"))
    return table(("family", "runs", "pairs", "alarms", "nearest (1 is an alarm)"), rows)


def bound(clean: Sequence[Judged]) -> str:
    """One sentence with the upper bound on the rate of alarms."""
    if not clean:
        return "No clean pair was compared."
    alarms = sum(one.verdict != "agree" for one in clean)
    rate = upper_bound(alarms, len(clean))
    return (
        f"{alarms} alarms on {len(clean)} pairs. Were the pairs independent, the rate of alarms would be below "
        f"{rate:.1%} with {CONFIDENCE:.0%} confidence; pairs of one family share runs, so that this is a rough figure."
    )


def upper_bound(count: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper limit of a rate (Clopper and Pearson, 1934), by bisection."""
    if count >= trials:
        return 1.0

    def at_most(rate: float) -> float:
        logs = [
            math.lgamma(trials + 1)
            - math.lgamma(found + 1)
            - math.lgamma(trials - found + 1)
            + found * math.log(rate)
            + (trials - found) * math.log1p(-rate)
            for found in range(count + 1)
        ]
        return sum(map(math.exp, logs))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > 1 - confidence else (low, middle)
    return high


def summary_table(faults: Sequence[Judged], sources: dict[str, str]) -> str:
    groups = {
        "all": list(faults),
        "the same numerics": [one for one in faults if one.same_numerics],
        "other numerics": [one for one in faults if not one.same_numerics],
        **{
            f"in {title}": [one for one in faults if (one.fault or "").startswith(f"{engine}/")]
            for engine, title in ENGINES.items()
        },
        f"of at least {LARGE:g} floors": [one for one in faults if _floors(one) >= LARGE],
        "reported bugs": [one for one in faults if one.fault in sources],
    }
    rows = []
    for name, chosen in groups.items():
        seen = [one for one in chosen if found(one)]
        count = str(len({one.fault for one in chosen}))
        rows.append(
            (name, count, str(len(chosen)), _share(chosen, found), _share(chosen, placed), _share(seen, placed))
        )
    return table(("", "faults", "pairs", "found", "found and placed", "placed of those found"), rows)


def smallest(faults: Sequence[Judged]) -> str:
    """Sentences on the sizes from which faults are found."""
    sized = [one for one in faults if one.multiple is not None and math.isfinite(one.multiple)]
    if not sized:
        return "No size of a fault was measured."
    large = [one for one in sized if _floors(one) >= LARGE]
    missed = [one for one in sized if not found(one)]
    sentences = [
        f"Of {len(large)} pairs with a fault of at least {LARGE:g} floors {sum(map(found, large))} were found and "
        f"{sum(map(placed, large))} placed."
    ]
    if missed:
        largest = max(missed, key=_floors)
        sentences.append(f"The largest fault that was missed has {_floors(largest):.2g} floors ({largest.fault}).")
    sizes = {
        _planting(one): one.size
        for one in faults
        if one.same_numerics and one.size and math.isfinite(one.size) and not one.family.endswith(FINER)
    }
    for which, same in (("the same", True), ("other", False)):
        seen = [
            _planting(one) for one in faults if found(one) and one.same_numerics is same and _planting(one) in sizes
        ]
        if seen:
            least = min(seen, key=lambda one: sizes[one])
            size, name = sizes[least], least[0]
            sentences.append(
                f"In bfloat16 the smallest one found under {which} numerics has a size of {size:.2g} ({name})."
            )
    return " ".join(sentences)


def _floors(one: Judged) -> float:
    return one.multiple or 0.0


def fault_table(faults: Sequence[Judged], sources: dict[str, str]) -> str:
    rows = []
    for name in sorted({one.fault or "" for one in faults}):
        chosen = [one for one in faults if one.fault == name]
        sizes = [one.size for one in chosen if one.size is not None and one.same_numerics]
        multiples = [one.multiple for one in chosen if one.multiple is not None]
        label = f"[{name}]({sources[name]})" if name in sources else name
        same, other = ([one for one in chosen if one.same_numerics is value] for value in (True, False))
        wrong = sorted({one.place for one in chosen if found(one) and not placed(one) and one.place})
        size = f"{max(sizes):.2g}" if sizes else ""
        multiple = f"{max(multiples):.3g}" if multiples else ""
        rows.append((label, chosen[0].expected or "", size, multiple, _both(same), _both(other), ", ".join(wrong)))
    header = (
        "fault",
        "place",
        "size",
        "floors",
        "same numerics: found, placed",
        "other numerics: found, placed",
        "placed instead at",
    )
    return table(header, rows)


def harmless_table(harmless: Sequence[Judged]) -> str:
    rows = [
        (one.fault or "", one.family, "same" if one.same_numerics else "other", one.verdict, one.place or "")
        for one in harmless
    ]
    return table(("", "family", "numerics", "verdict", "place"), rows)


def found(one: Judged) -> bool:
    return one.verdict == "differ"


def placed(one: Judged) -> bool:
    return found(one) and one.place == one.expected


def _share(chosen: Sequence[Judged], holds: Callable[[Judged], bool]) -> str:
    count = sum(map(holds, chosen))
    return f"{count} ({count / len(chosen):.0%})" if chosen else "0"


def _both(chosen: Sequence[Judged]) -> str:
    return f"{sum(map(found, chosen))}, {sum(map(placed, chosen))} of {len(chosen)}" if chosen else ""

"""The figures as Markdown: ratios first, since they carry over to other machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report import table

ALONE = "no taps"
READING = "reading alone"


def as_markdown(results: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    size = results["size"]
    decoder = f"A decoder of {size['layers']} layers, hidden {size['hidden']}, bf16, with {size['taps']} taps."
    parts = [
        "## Recording on a CUDA device",
        f"`python -m benchmarks.gpu --write`: {results['card']}; {results['machine']}, torch {results['torch']}. "
        f"{decoder}\n{_shortcut(results)} Sides take turns in one process; medians. Time a step is until the "
        "stream of the model has come\nto its end, time a tap what a step takes longer than those without taps right "
        "before and after it, shared out among\nthe taps, and durable is until all is in the file.",
    ]
    for title, key in (("Eager", "eager"), ("As a CUDA graph", "graph")):
        for rows, sides in results.get(key, {}).items():
            nbytes = int(rows) * size["hidden"] * 2
            parts += [f"{title}, {rows} tokens, {_size(nbytes)} a tap:", _steps(sides, size["taps"], nbytes)]
    if "calls" in results:
        rows = [(name, f"{value} µs") for name, value in results["calls"].items()]
        parts += [
            f"One call of {_size(size['hidden'] * 2 * int(size['tokens'][0]))}, nothing else running:",
            table(("side", "host"), rows),
        ]
    if "between kernels" in results:
        parts += [
            "The same between the kernels of the model:",
            _between(results["between kernels"], size["hidden"] * 2),
        ]
    if "kernels" in results:
        parts += ["One kernel for 32 MiB, on the device (goal: 1.3 × reading):", _kernels(results["kernels"])]
    if "launched" in results:
        parts += ["What the device does more for a tap:", _launched(results["launched"], size["taps"])]
    if "python" in results:
        alone, beside = results["python"]["alone"], results["python"]["beside a busy writer"]
        parts.append(
            f"A loop of plain Python beside a busy writer takes {100 * (beside / alone - 1):+.1f} % ({alone} ms alone; "
            "goal: 2 %)."
        )
    if "bandwidth" in results:
        kinds = list(results["bandwidth"])
        names = list(results["bandwidth"][kinds[0]])
        rows_of = [(name, *(str(results["bandwidth"][kind][name]) for kind in kinds)) for name in names]
        parts += ["GB/s, 16 values of 64 MiB:", table(("what", *(f"into {kind}" for kind in kinds)), rows_of)]
    for name, error in results.get("errors", {}).items():
        parts.append(f"Not measured: {name} ({error})")
    return "\n\n".join(parts)


def _shortcut(results: Mapping[str, Any]) -> str:
    if "shortcut" not in results:
        return "Before there was the compiled shortcut."
    return f"{'With' if results['shortcut'] else 'Without'} the compiled shortcut."


def _between(found: Mapping[Any, Mapping[str, float]], row_bytes: int) -> str:
    sides = list(next(iter(found.values())))
    columns = [f"{_size(int(rows) * row_bytes)}" for rows in found]
    return table(("side", *columns), [(side, *(f"{of[side]} µs" for of in found.values())) for side in sides])


def _kernels(found: Mapping[str, float]) -> str:
    reading = found[READING]
    return table(("what", "time", "ratio"), [(name, f"{us} µs", f"{us / reading:.2f} ×") for name, us in found.items()])


def _size(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):g} MiB" if nbytes >= 1 << 20 else f"{nbytes / 1024:g} KiB"


def _steps(sides: Mapping[str, Any], taps: int, nbytes: int) -> str:
    alone = sides.get(ALONE, {}).get("wall")
    rows = []
    for name, found in sides.items():
        if "wall" not in found:
            rows.append((name, found["error"], "", "", "", ""))
            continue
        # Figures of an earlier form have no neighbours.
        longer = found.get("longer", found["wall"] - alone if alone else 0.0)
        ratio = f"{1 + longer / alone:.3f} ×" if alone else ""
        a_tap = f"{longer / taps * 1e3:.1f} µs" if alone else ""
        rate = taps * nbytes / found["durable"] / 1e6
        rows.append((name, f"{found['wall']:.2f} ms", ratio, a_tap, f"{found['durable']:.2f} ms", f"{rate:.2f} GB/s"))
    return table(("side", "a step", "ratio", "a tap", "durable", "of the values"), rows)


def _launched(sides: Mapping[str, Mapping[str, int]], taps: int) -> str:
    kinds = ("kernels", "copies", "fills")
    alone = sides.get(ALONE, {})
    rows = [
        (name, *(f"{(found.get(kind, 0) - alone.get(kind, 0)) / taps:.2f}" for kind in kinds))
        for name, found in sides.items()
    ]
    return table(("side", *kinds), rows)

"""What patching costs, side by side with the unpatched module in the same run.

    python benchmarks/patcher.py [--repeat N] [--module NAME --config FILE]

Figures are medians of alternating runs, in processor time (user and system), so that other work on the machine does
not count. Absolute times depend on the machine; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Python puts the folder of a script first, where this file has the name of the package it measures.
sys.path[0] = str(ROOT)

from patcher.check import check_configs, check_loaded  # noqa: E402
from patcher.launch import environment_for, write_plan  # noqa: E402
from patcher.loading.compiler import compile_module  # noqa: E402
from patcher.loading.hook import Activation, PatchingFinder  # noqa: E402
from patcher.loading.importing import make_activation  # noqa: E402
from patcher.reading.config import load_config  # noqa: E402
from patcher.targets.modules import ModuleFinder  # noqa: E402

LAYER = '''
class Layer{number}:
    """A layer of a generated model."""

    def __init__(self, config, layer_id):
        self.layer_id = layer_id
        self.norm = config.norm(config.hidden_size, eps=config.eps)
        self.attention = config.attention(
            hidden_size=config.hidden_size,
            heads=config.heads,
            layer_id=layer_id,
        )

    def forward(self, hidden_states, positions, forward_batch, residual=None):
        if residual is None:
            residual = hidden_states
            hidden_states = self.norm(hidden_states)
        else:
            hidden_states, residual = self.norm(hidden_states, residual)
        if hidden_states.shape[0] != 0:
            hidden_states = self.attention(
                positions=positions,
                hidden_states=hidden_states,
                forward_batch=forward_batch,
            )
        table = {{index: value for index, value in enumerate(hidden_states) if value}}
        try:
            hidden_states = self.mlp(hidden_states, forward_batch, table=table, scale=[1.0, 2.0, 3.0])
        except (ValueError, KeyError) as error:
            raise RuntimeError(f"layer {{self.layer_id}} of {{len(table)}}") from error
        return hidden_states, residual
'''


def generate(folder: Path, lines: int, taps: bool) -> tuple[str, Path]:
    """A module of about that many lines, and a config with three edits in every eighth layer."""
    count = lines // LAYER.count("\n")
    name = "generated_taps" if taps else "generated_code"
    (folder / f"{name}.py").write_text("".join(LAYER.format(number=number) for number in range(count)))
    patches = ["patches:"]
    for number in range(0, count, 8):
        patches += [f"  - target: {name}.Layer{number}.forward", "    edits:"]
        for pattern in ("hidden_states = self.attention(...)", "hidden_states = self.mlp(...)"):
            tap = "dump: {name: out, value: hidden_states, layer_id: self.layer_id}"
            patches += [
                f"      - match: {pattern}",
                f"        {tap if taps else 'after: hidden_states = hidden_states'}",
            ]
    config = folder / f"{name}.yaml"
    config.write_text("\n".join(patches) + "\n")
    return name, config


def processor_seconds(command: Sequence[str], environment: dict[str, str], folder: Path) -> float:
    """Run a command; user and system time of its process."""
    process = subprocess.Popen(command, env=environment, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime


def start_up(
    name: str, config: Path, repeat: int, environment: dict[str, str], beside: str = ""
) -> tuple[float, float]:
    """Seconds of a process that imports the module: unpatched (``beside`` it another), and patched from the cache."""
    loaded = [load_config(config)]
    finder = ModuleFinder(path=[str(config.parent)])
    checked = check_loaded(loaded, finder)
    if not checked.ok:
        raise SystemExit("\n".join(checked.errors))
    patched = environment_for(write_plan(make_activation(loaded, checked.plan)), environment)
    command = [sys.executable, "-c", f"import {name}, sys; assert 'libcst' not in sys.modules"]
    folder = config.parent
    unpatched = [*command[:2], f"import {beside}\n{command[2]}"] if beside else command
    processor_seconds(unpatched, environment, folder)  # writes Python's own bytecode
    processor_seconds([sys.executable, "-c", f"import {name}"], patched, folder)  # writes ours
    runs = [
        (processor_seconds(unpatched, environment, folder), processor_seconds(command, patched, folder))
        for _ in range(repeat)
    ]
    return statistics.median(plain for plain, _ in runs), statistics.median(ours for _, ours in runs)


def first_rewrite(config: Path, folder: Path) -> tuple[int, float]:
    """Lines of the module, and seconds to rewrite and compile it, libcst imported already."""
    check_configs([config], path=[str(folder)])
    start = time.process_time()
    (module,) = check_configs([config], path=[str(folder)]).modules
    assert module.rewritten is not None
    compile_module(module.rewritten, module.file)
    return module.rewritten.source.count("\n"), time.process_time() - start


def hook_cost() -> tuple[float, float]:
    """Seconds that the finder adds to an import that is none of its business, and one whole such import search."""
    finder = PatchingFinder(Activation({f"module{number}": "" for number in range(30)}, "[]"))
    count = 200_000
    ours = (
        timeit.timeit(lambda: finder.find_spec("collections.abc", None), number=count, timer=time.process_time) / count
    )
    searches = 2000
    whole = (
        timeit.timeit(
            lambda: importlib.machinery.PathFinder.find_spec("colorsys", None), number=searches, timer=time.process_time
        )
        / searches
    )
    return ours, whole


def switched_off() -> dict[str, float]:
    """Seconds that a tap adds while it is off, statement and wrapped value, above the same code without it."""

    class Tap:
        on = False

    names: dict[str, object] = {"taps": (Tap(),), "wrap": None}
    source = {
        "none": "def f(x):\n    y = x\n    return y\n",
        "statement": "def f(x):\n    y = x\n    if taps[0].on:\n        pass\n    return y\n",
        "wrapped": "def f(x):\n    y = wrap(taps[0], x, lambda v: x) if taps[0].on else x\n    return y\n",
    }
    times: dict[str, float] = {}
    count = 1_000_000
    for kind, text in source.items():
        exec(text, names)
        times[kind] = min(timeit.repeat("f(1)", globals=names, number=count, repeat=5, timer=time.process_time)) / count
    return {kind: times[kind] - times["none"] for kind in ("statement", "wrapped")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--module", help="a module of an installed package to measure start-up of as well")
    parser.add_argument("--config", type=Path, help="the config that patches it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TENSORTAP_CACHE"] = str(folder / "cache")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPATH"] = str(ROOT)
        print(f"Python {sys.version.split()[0]}, {options.repeat} alternating runs, medians")
        for taps in (False, True):
            module, config = generate(folder, 6000, taps)
            lines, seconds = first_rewrite(config, folder)
            what = "taps" if taps else "code"
            print(f"first rewrite, {lines} lines, {what:<5} {seconds * 1000:8.1f} ms")
            plain, ours = start_up(module, config, options.repeat, environment)
            report(f"start-up of a process that imports it, {what}", plain, ours)
        # Taps need the dumper, which a program that records imports anyhow.
        plain, ours = start_up(module, config, options.repeat, environment, beside="dumper")
        report("start-up of a process that imports it and the dumper, taps", plain, ours)
        if options.module and options.config:
            plain, ours = start_up(options.module, options.config.resolve(), options.repeat, environment)
            report(f"start-up with {options.module}", plain, ours)
    ours, whole = hook_cost()
    print(f"hook, per unrelated import        {ours * 1e6:8.2f} us  ({ours / whole:.1%} of finding a module)")
    for kind, seconds in switched_off().items():
        print(f"a tap that is off, {kind:<10}     {seconds * 1e9:8.1f} ns")


def report(what: str, plain: float, ours: float) -> None:
    """One line: unpatched, patched from the cache, ratio."""
    print(f"{what}: {plain * 1000:.1f} ms unpatched, {ours * 1000:.1f} ms patched, ratio {ours / plain:.3f}")


if __name__ == "__main__":
    main()

"""What patching costs, side by side with the unpatched module in the same run.

    python -m benchmarks.patching [--write] [--repeat N] [--module NAME --config FILE [--path DIR]]

Figures are medians of alternating runs, in processor time (user and system), so that other work on the machine does
not count. Absolute times depend on the machine; the ratios are what counts. ``--write`` puts the table into
docs/benchmarks.md.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import machine, table, write_section
from patcher.check import check_configs, check_loaded
from patcher.config.load import load_config
from patcher.launch import environment_for
from patcher.load.activation import make_activation, write_plan
from patcher.load.compile import compile_module
from patcher.load.hook import activate, deactivate
from patcher.load.process_plan import Activation
from patcher.source.modules import ModuleFinder

ROOT = Path(__file__).resolve().parent.parent
LINES = 6000
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
CHILD = """
import sys, time
for name in {first!r}:
    __import__(name)
start = time.process_time()
import {module}
print(time.process_time() - start)
assert "libcst" not in sys.modules
"""


@dataclass(frozen=True)
class Measured:
    """Seconds: unpatched and patched from the cache."""

    plain: float
    patched: float

    def row(self, what: str) -> tuple[str, ...]:
        """One line of the table."""
        ratio = self.patched / self.plain
        return (what, f"{self.plain * 1e3:.1f} ms", f"{self.patched * 1e3:.1f} ms", f"{ratio:.3f}")


def generate(folder: Path, *, taps: bool) -> tuple[str, Path]:
    """A module of about ``LINES`` lines, and a config with two edits in every eighth layer."""
    count = LINES // LAYER.count("\n")
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


def start_up(
    module: str, config: Path, repeat: int, environment: dict[str, str], first: Sequence[str] = ()
) -> tuple[Measured, Measured]:
    """What importing the module takes after the modules ``first``, and what the whole process takes."""
    loaded = [load_config(config)]
    checked = check_loaded(loaded, ModuleFinder(path=[str(config.parent)]))
    if not checked.ok:
        raise SystemExit("\n".join(checked.errors))
    patched = environment_for(write_plan(make_activation(loaded, checked.plan)), environment)
    command = [sys.executable, "-c", CHILD.format(first=tuple(first), module=module)]
    # Fills both caches of bytecode; libcst may be imported here.
    _run(command, environment, config.parent)
    subprocess.run([sys.executable, "-c", f"import {module}"], env=patched, cwd=config.parent, check=True)
    plain, ours = [], []
    for _ in range(repeat):
        plain.append(_run(command, environment, config.parent))
        ours.append(_run(command, patched, config.parent))

    def median(number: int) -> Measured:
        return Measured(*(statistics.median(run[number] for run in runs) for runs in (plain, ours)))

    return median(0), median(1)


def _run(command: Sequence[str], environment: dict[str, str], folder: Path) -> tuple[float, float]:
    """Processor time of the import, as the process says, and of the whole process."""
    process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    # A model file may print while it is imported.
    return float(said.split()[-1]), usage.ru_utime + usage.ru_stime


def first_rewrite(config: Path, folder: Path) -> float:
    """Seconds to rewrite and compile the module, libcst imported already."""
    check_configs([config], path=[str(folder)])
    start = time.process_time()
    (module,) = check_configs([config], path=[str(folder)]).modules
    assert module.rewritten is not None
    compile_module(module.rewritten, module.file)
    return time.process_time() - start


def many_taps(folder: Path, count: int, edit: str) -> float:
    """Seconds to check and compile a function with so many edits."""
    body = "".join(f"        x = self.f{number}(x)\n" for number in range(count))
    (folder / "many_taps.py").write_text(f"class Net:\n    def forward(self, x):\n{body}        return x\n")
    edits = "".join(f"      - {{{edit.replace('N', str(number))}}}\n" for number in range(count))
    config = folder / "many_taps.yaml"
    config.write_text(f"patches:\n  - target: many_taps.Net.forward\n    edits:\n{edits}")
    start = time.process_time()
    (module,) = check_configs([config], path=[str(folder)]).modules
    assert module.rewritten is not None
    compile_module(module.rewritten, module.file)
    return time.process_time() - start


def hook_cost() -> tuple[float, float]:
    """Seconds that the finder adds to an import that is none of its business, and one whole such import search."""
    activation = Activation({f"module{number}": "" for number in range(30)}, "[]")
    activate(activation)
    finder: Any = sys.meta_path[0]
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
    deactivate(activation)
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


def start_up_rows(
    folder: Path, repeat: int, module: str | None, config: Path | None, path: Path | None
) -> list[tuple[str, ...]]:
    """The lines of the table that compare with the unpatched module."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(ROOT)
    rows = []
    for taps in (False, True):
        name, own_config = generate(folder, taps=taps)
        what = "with 50 taps" if taps else "with 50 other edits"
        imported, alone = start_up(name, own_config, repeat, environment)
        # A process that records imports the dumper in any case, as one that runs a model imports torch.
        if taps:
            imported, _ = start_up(name, own_config, repeat, environment, ["dumper"])
        _, with_torch = start_up(name, own_config, repeat, environment, ["torch"])
        rows.append(imported.row(f"importing {LINES:,} lines {what}"))
        rows.append(with_torch.row(f"a process that imports torch and {LINES:,} lines {what}"))
        rows.append(alone.row(f"a process that imports nothing but {LINES:,} lines {what}"))
    if module and config:
        if path:
            environment["PYTHONPATH"] = os.pathsep.join((str(path.resolve()), str(ROOT)))
        _, process = start_up(module, config.resolve(), max(3, repeat // 5), environment)
        rows.append(process.row(f"a process that imports {module}"))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--module", help="a module of an installed package to measure start-up of as well")
    parser.add_argument("--config", type=Path, help="the config that patches it")
    parser.add_argument("--path", type=Path, help="a folder that this module needs on PYTHONPATH")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TENSORTAP_CACHE"] = str(folder / "cache")
        rows = start_up_rows(folder, options.repeat, options.module, options.config, options.path)
        rewrite = first_rewrite(folder / "generated_taps.yaml", folder)
        many = {
            what: [many_taps(folder, count, edit) for count in (250, 500)]
            for what, edit in (
                ("statements", "match: x = self.fN(...), dump: {name: nN, value: x}"),
                ("wrapped values", "wrap: self.fN(...), dump: {name: nN}"),
            )
        }
    ours, search = hook_cost()
    off = switched_off()
    alone = [
        (f"the first rewrite of {LINES:,} lines, 50 taps", f"{rewrite:.2f} s", "< 1 s"),
        *(
            (f"500 taps in one function, {what} ({half:.2f} s for 250)", f"{whole:.2f} s", "< 2 s")
            for what, (half, whole) in many.items()
        ),
        ("the import hook, per import of another module", f"{ours * 1e6:.2f} µs ({ours / search:.1%} of it)", "< 5 µs"),
        *((f"a tap that is off, {kind}", f"{seconds * 1e9:.0f} ns", "< 100 ns") for kind, seconds in off.items()),
    ]
    text = f"""## Patching

`python -m benchmarks.patching --write`: medians of {options.repeat} alternating runs, processor time, {machine()}.
Start-up is from the cache; the goal is a ratio of 1.1 at most.

{table(("start-up", "unpatched", "patched", "ratio"), rows)}

{table(("what", "it takes", "goal"), alone)}
"""
    print(text)
    if options.write:
        write_section("patcher", text)


if __name__ == "__main__":
    main()

"""Compare runs of the same requests that were batched in different ways: time from start to exit of ``smart``.

    python -m benchmarks.smart [--write] [--scratch DIR]

The runs are those of an engine that batches continuously (``testbed.synthetic_engine``): prompts of different lengths,
prefilled whole on one side and in chunks on the other, and decoded beside each other, eight on one side and sixteen on
the other. There is no peer: SGLang's comparator ends with an error where requests are decoded. A clean target has to
pass, and one with a single wrong value has to fail. ``--write`` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.comparing import Cost, in_words, run
from benchmarks.report import machine, table, write_section
from dumper.layout import SequenceSpan
from dumper.recording.recorder import Recorder
from testbed.synthetic_engine import Engine, Request, Schedule, serve

REQUESTS = {64: 3, 128: 2, 256: 1}
"""And how often they are compared."""
TOKENS = 500
"""Of each request; from 340 to 460 of them are its prompt."""
LAYERS, HIDDEN = 32, 64
BASELINE, TARGET = Engine(max_running=8), Engine(max_running=16, chunk=512)
NOISE = 1e-3
WRONG_BY = 8.0
"""What is added to a value of one token in the middle of the layers; values are normal."""


class Found(NamedTuple):
    requests: int
    records: int
    """Of both sides."""
    clean: Cost
    wrong: Cost

    @property
    def pairs(self) -> int:
        """Tokens that both sides have, at each tap."""
        return self.requests * TOKENS * LAYERS


def asked(count: int) -> list[Request]:
    chance = random.Random(0)
    found = []
    for number in range(count):
        tokens = tuple(chance.randrange(100_000) for _ in range(TOKENS + 1))  # the last one is sampled, never computed
        prompt = chance.randrange(340, 461)
        found.append(Request(f"request-{number}", tokens[:prompt], tokens[prompt:]))
    return found


def write(path: Path, schedule: Schedule, number: dict[str, int], noise: float, wrong: bool = False) -> int:
    """Record the run; gives the number of its records.

    The value of a token at a tap is the same however it was batched, but for noise. With ``wrong`` one value is not.
    """
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(path.parent), run=path.name, control=False)
    recorder.configure(parallel={"tp": (0, 1)})
    generator = torch.Generator().manual_seed(0)
    # A layer takes the columns from its own number on, so that all taps differ and none has to be made.
    values = torch.randn((len(number) * TOKENS, HIDDEN + LAYERS), generator=generator)
    if noise:
        values += noise * torch.randn(values.shape, generator=generator)
    values = values.to(torch.bfloat16)
    for step, (one,) in enumerate(schedule.passes):
        recorder.step(layout=one.layout)
        rows = values[rows_of(one.layout.sequences, number)]
        for layer in range(LAYERS):
            value = rows[:, layer : layer + HIDDEN].contiguous()
            if wrong and step == len(schedule.passes) // 2 and layer == LAYERS // 2:
                value[0, 0] += WRONG_BY
            recorder.dump("hidden", value, dims="t h", layer_id=layer)
    recorder.close()
    return LAYERS * len(schedule.passes)


def rows_of(sequences: tuple[SequenceSpan, ...], number: dict[str, int]) -> torch.Tensor:
    spans = ((TOKENS * number[one.id] + one.start, one.count) for one in sequences)
    return torch.from_numpy(np.concatenate([np.arange(first, first + count) for first, count in spans]))


def measure(count: int, folder: Path, rounds: int) -> Found:
    requests = asked(count)
    number = {request.id: index for index, request in enumerate(requests)}
    baseline, target = serve(requests, BASELINE), serve(requests, TARGET)
    for name in ("clean", "wrong"):
        (folder / name).mkdir(parents=True)
    records = write(folder / "clean" / "a", baseline, number, 0.0)
    (folder / "wrong" / "a").symlink_to(folder / "clean" / "a")
    for name in ("clean", "wrong"):
        more = write(folder / name / "b", target, number, NOISE, wrong=name == "wrong")
    command = ["-m", "comparator", "--token-aligner", "smart"]
    costs = [(run(command, folder / "clean"), run(command, folder / "wrong", exit_code=1)) for _ in range(rounds)]
    clean, wrong = map(least, zip(*costs, strict=True))
    return Found(count, records + more, clean, wrong)


def least(costs: Sequence[Cost]) -> Cost:
    return Cost(*(min(getattr(one, of.name) for one in costs) for of in dataclasses.fields(Cost)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to write the runs (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"TORCHELASTIC_RUN_ID": "benchmark", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    found = []
    for count, rounds in REQUESTS.items():
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            found.append(measure(count, Path(folder), rounds))
        print(found[-1], flush=True)
    befores: list[Found | None] = [None, *found[:-1]]
    rows: list[tuple[str, ...]] = [
        (
            str(one.requests),
            f"{one.records:,}",
            in_words(one.clean),
            f"{one.clean.processor:.2f} s",
            in_words(one.wrong),
            f"{one.records / one.clean.seconds:,.0f}",
            f"{one.pairs / one.clean.seconds:,.0f}",
            *growth(before, one),
        )
        for before, one in zip(befores, found, strict=True)
    ]
    header = (
        *("requests", "records", "clean", "of the processor", "one wrong value", "records a second", "pairs a second"),
        *("time", "memory"),
    )
    busy = os.getloadavg()[0]
    few, many, chunk = BASELINE.max_running, TARGET.max_running, TARGET.chunk
    best_of = ", ".join(map(str, REQUESTS.values()))
    text = f"""## Other batches on both sides: `smart`

`python -m benchmarks.smart --write`; {machine()}. Requests of {TOKENS} tokens each, {LAYERS} taps of
{HIDDEN} bf16, recorded by an engine that decodes {few} of them at a time, and by one that decodes {many} and prefills
in chunks of {chunk}; compared with `--token-aligner smart`. The target has noise of rounding, and passes; with a single
wrong value beside it, it fails. From start to exit of the process, the best of {best_of} in turns, and the most memory
of one process, the pages of mapped files counted. A pair is a token at a tap. Time and memory: of the clean target,
times those of half as many requests, in processor time, while {busy:.0f} processes shared the processors. SGLang's
comparator is not beside it: it ends with an error where requests are decoded.

{table(header, rows)}
"""
    print(text)
    if arguments.write:
        write_section("smart", text)


def growth(before: Found | None, found: Found) -> tuple[str, str]:
    if before is None:
        return "", ""
    processor, peak = found.clean.processor / before.clean.processor, found.clean.peak / before.clean.peak
    return f"{processor:.2f} ×", f"{peak:.2f} ×"


if __name__ == "__main__":
    main()

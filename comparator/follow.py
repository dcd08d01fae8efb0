"""``--follow``: compare the steps of runs that are still being written, as they become complete."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from comparator.errors import ComparatorError
from comparator.options import SIDES, Options, Side
from comparator.pipeline import begin
from comparator.prepared import prepare
from comparator.report.records import Comparison
from comparator.report.reporters import Reporter
from dumper.reading.open import open_run
from dumper.reading.protocol import Run, RunError, Written
from dumper.storage.addresses import shown_address
from tensortap.printable import printable

SHORTEST_WAIT = 0.1
LONGEST_WAIT = 5.0
"""Seconds between two looks at the files."""
SHARE = 0.2
"""Of the time that looking and comparing may take, the rest is waited."""


class Round(Struct, frozen=True):
    """Steps that both runs have completed since the last round."""

    first: int
    last: int
    runs: tuple[Run, Run]


class Once:
    """A reporter that leaves out findings which it had already with the same verdict."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._known: dict[object, str] = {}

    def report(self, record: object) -> None:
        """Take one record."""
        if isinstance(record, Comparison):
            key = (record.name, tuple(sorted(record.tags.items())), record.location.step)
            if self._known.get(key) == record.category:
                return
            self._known[key] = record.category
        self._reporter.report(record)  # type: ignore[arg-type]


def check_follow(options: Options, paths: tuple[str, str]) -> None:
    """Raise ComparatorError where steps cannot be compared one after the other."""
    if options.token_aligner != "per_step":
        raise ComparatorError(
            f"--follow compares step by step and --token-aligner {options.token_aligner} joins all steps: leave one of "
            "them out, or compare once the runs are complete"
        )
    for path in paths:
        if not Path(path).is_dir():
            shown = shown_address(path)
            raise ComparatorError(f"--follow: {shown} is no directory on this machine; give the directory of a run")


def follow(paths: tuple[str, str], options: Options, *, wait: Callable[[float], None] = time.sleep) -> Iterator[Round]:
    """Rounds of complete steps, until both runs are closed or nobody is left to write them.

    Says on standard error how it ended. Raises ComparatorError for what is no run of ours.
    """
    done = options.start_step - 1
    seen: set[Side] = set()
    while True:
        began = time.monotonic()
        looks = {side: _look(path, side) for side, path in zip(SIDES, paths, strict=True)}
        for side, path in zip(SIDES, paths, strict=True):
            if looks[side] is None and (side in seen or not Path(path).is_dir()):
                raise ComparatorError(
                    f"--follow: the {side} is gone, nothing of it is in {shown_address(path)} any more"
                )
        seen.update(side for side, look in looks.items() if look is not None)
        found = [look for look in looks.values() if look is not None]
        if len(found) == len(SIDES):
            runs, states = (found[0][0], found[1][0]), (found[0][1], found[1][1])
            last = _last(states, options)
            if last is not None and last > done:
                yield Round(done + 1, last, runs)
                done = last
            if all(state.closed or state.gone for state in states):
                for side, state in zip(SIDES, states, strict=True):
                    if not state.closed:
                        _say(f"the processes of the {side} are gone and did not end their recording; it is incomplete")
                return
        took = time.monotonic() - began
        wait(min(max(SHORTEST_WAIT, took / SHARE), LONGEST_WAIT))


def findings_of(found: Round, options: Options, jobs: int | None) -> Iterator[Comparison]:
    """The findings of a round: each is judged with the pairs of the same round.

    An interrupt is raised once what was found until then is handed on.
    """
    prepared = prepare(*found.runs, replace(options, start_step=found.first, end_step=found.last))
    comparing = begin(prepared, jobs=jobs)
    for finding in comparing:
        if finding.location.step is not None:
            yield finding
    if comparing.interrupted:
        raise KeyboardInterrupt


def _look(path: str, side: Side) -> tuple[Run, Written] | None:
    """A run as it is now; None while it holds nothing yet."""
    try:
        run = open_run(path)
    except RunError:
        return None  # nothing is in the directory so far
    except (OSError, ValueError) as error:
        raise ComparatorError(f"{side}: {error}") from None
    state = run.written()
    if state is None:
        raise ComparatorError(
            f"--follow: {run.path} is no run of tensortap's own, and does not say when it is complete"
        )
    return run, state


def _last(states: tuple[Written, Written], options: Options) -> int | None:
    """The last step that is complete on both sides."""
    steps = [state.complete_up_to for state in states]
    known = [step for step in steps if step is not None]
    return min(*known, options.end_step) if len(known) == len(steps) else None


def _say(message: str) -> None:
    print(f"comparator: {printable(message)}", file=sys.stderr)

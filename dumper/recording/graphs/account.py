"""What was recorded of CUDA graphs and what was silent, for the end of the run and for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dumper.recording.graphs.captured import CapturedGraph, LeftOut

_NAMES_SAID = 5


class GraphAccount:
    """Counts. Changed under the lock of replays, or by captures, which are rare."""

    def __init__(self) -> None:
        self.captured = 0
        """Graphs that were captured with taps."""
        self.replays = 0
        """Replays that were recorded."""
        self.values = 0
        """Values of these, as the filter let through."""
        self.silent_graphs = 0
        """Graphs that were captured while recording was off."""
        self.silent_replays = 0
        """Replays of these while recording was on."""
        self.unknown_captures = 0
        """Values that ran through taps during captures of which no ``torch.cuda.CUDAGraph`` saw beginning or end."""
        self.left_out: dict[tuple[str, str], int] = {}
        """Name and reason of values that are not in a graph, and in how many captures that was."""
        self.left_out_values = 0
        """How many values recorded replays would have had of these."""

    def leave_out(self, values: Iterable[LeftOut]) -> None:
        """Values ran through taps during a capture and are not in the graph."""
        for value in values:
            key = (value.name, value.reason)
            self.left_out[key] = self.left_out.get(key, 0) + 1

    def replayed(self, graph: CapturedGraph, values: int) -> None:
        """A replay was recorded, and so many of its values."""
        self.replays += 1
        self.values += values
        self.left_out_values += len(graph.left_out)

    @property
    def silent(self) -> bool:
        """Whether anything was not recorded that taps or replays would have given."""
        return bool(self.left_out or self.silent_replays or self.unknown_captures)

    def fields(self) -> dict[str, Any]:
        """For the file, plain values; empty where there were no graphs."""
        if not (self.captured or self.silent_graphs or self.left_out or self.unknown_captures):
            return {}
        return {
            "captured": self.captured,
            "replays": self.replays,
            "values": self.values,
            "silent_graphs": self.silent_graphs,
            "silent_replays": self.silent_replays,
            "unknown_captures": self.unknown_captures,
            "left_out_values": self.left_out_values,
            "left_out": [
                {"name": name, "reason": reason, "captures": captures}
                for (name, reason), captures in self.left_out.items()
            ],
        }

    def report(self) -> str:
        """What there is to say at the end, in a line or a few; empty where there were no graphs."""
        if not self.fields():
            return ""
        lines = [
            f"CUDA graphs: {self.captured} captured with taps, {self.replays} replays recorded, {self.values} values"
        ]
        if self.silent_graphs:
            lines.append(
                f"{self.silent_graphs} graphs were captured while recording was off and hold no taps "
                f"({self.silent_replays} of their replays came while it was on)"
            )
        if self.unknown_captures:
            lines.append(
                f"{self.unknown_captures} values ran through taps in captures that are no torch.cuda.CUDAGraph"
            )
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out:
            reasons.setdefault(reason, []).append(name)
        lines += [f"left out, {reason}: {_few(names)}" for reason, names in reasons.items()]
        return "; ".join(lines)


def _few(names: list[str]) -> str:
    more = len(names) - _NAMES_SAID
    return ", ".join(names[:_NAMES_SAID]) + (f" and {more} more" if more > 0 else "")

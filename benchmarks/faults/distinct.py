"""Which recordings differ: two variants that computed the same bits are one, and their pairs are counted once.

A digest goes over rows by what they are, not over files: ``plain`` and ``chunk16`` have other files although a kernel
may have computed each row to the same bits.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dumper import open_run

PREFIX = 5
"""Tokens by which the prompts of ``prompts.make_prompts`` are told apart; none is shorter."""


def digest(run: Path) -> str:
    """128 bits, as hexadecimal text, that are equal when every recorded row of every token is the same bit for bit."""
    opened = open_run(run)
    rows_of: dict[tuple[int, int], list[tuple[Any, ...]]] = {}
    names = _sequence_names(opened)
    rows: set[bytes] = set()
    for record in opened.records:
        if record.step is None or record.kind != "tensor":
            continue
        layout = opened.layout(record.step, record.rank)
        if layout is None:
            continue
        key = (record.step, record.rank)
        if key not in rows_of:
            sequence, position = layout.row_identities()
            ids = [span.id for span in layout.sequences]
            rows_of[key] = [
                (names[record.rank, ids[number]], int(place)) if number >= 0 else ()
                for number, place in zip(sequence, position, strict=True)
            ]
        identities = rows_of[key]
        array = record.array()
        whole = layout.rows and array.size and array.size % layout.rows == 0
        flat = array.reshape(layout.rows, -1) if whole else None
        if flat is None or len(identities) != len(flat) or record.name == "next_token_logits":
            continue
        for identity, row in zip(identities, flat, strict=True):
            if identity:
                label = repr((record.name, sorted(record.tags.items()), record.rank, identity)).encode()
                rows.add(xxhash.xxh3_128_digest(label + np.ascontiguousarray(row).view(np.uint8).tobytes()))
    return xxhash.xxh3_128_hexdigest(b"".join(sorted(rows)))


class Digests:
    """Digests of runs that are kept in a file, since each takes as long as reading the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, run: Path) -> str:
        """That of ``digest``; worked out anew when a file of the run is another than it was."""
        name = repr(
            [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(run.glob("*.msgpack"))]
        )
        key = f"{run.parent.name}/{run.name} {xxhash.xxh3_64_hexdigest(name.encode())}"
        if key not in self._known:
            self._known[key] = digest(run)
            self._path.write_text(json.dumps(self._known, indent=0))
        return self._known[key]


def _sequence_names(run: Any) -> dict[tuple[int, str], tuple[int, ...]]:
    """By rank and the run's own id of a sequence, its first tokens."""
    tokens: dict[tuple[int, str], dict[int, int]] = defaultdict(dict)
    for step, rank in itertools.product(run.steps, run.ranks):
        layout = run.layout(step, rank)
        if layout is None or layout.token_ids is None:
            continue
        sequence, position = layout.row_identities()
        for number, place, token in zip(sequence, position, layout.token_ids, strict=True):
            if number >= 0 and place < PREFIX:
                tokens[rank, layout.sequences[number].id][int(place)] = int(token)
    return defaultdict(
        tuple, {key: tuple(found.get(place, -1) for place in range(PREFIX)) for key, found in tokens.items()}
    )

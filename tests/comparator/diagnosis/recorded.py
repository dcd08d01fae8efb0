"""Rows of taps from two recorded runs, by the comparator's own plans."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comparator.align import align
from comparator.diagnosis import (
    Diagnosis,
    GraphError,
    Options,
    SideRows,
    TapDeclaration,
    TapGraph,
    TapKey,
    TapProfile,
    TapRows,
    build_graph,
    diagnose,
    label_rows,
    profile,
)
from comparator.match import BundlePair
from comparator.options import Options as CompareOptions
from comparator.pipeline import Prepared, prepare
from comparator.plan import PairPlan, plan_pair
from dumper import open_run


@dataclass(frozen=True)
class Family:
    key: TapKey
    values: SideRows
    dtypes: tuple[str, str]
    ranks: int


def families(baseline: Path, target: Path) -> list[Family]:
    prepared = prepare(open_run(baseline), open_run(target), CompareOptions(token_aligner="smart"))
    found = (_family(pair, prepared) for pair in prepared.pairs)
    return [one for one in found if one is not None]


def _family(pair: BundlePair, prepared: Prepared) -> Family | None:
    left, right, session = pair.baseline, pair.target, prepared.session
    if left is None or right is None:
        return None
    records = (*left.records, *right.records)
    if any(record.kind != "tensor" or record.level != "full" for record in records):
        return None
    dims = {"baseline": session.dims(left, pair.name, "baseline"), "target": session.dims(right, pair.name, "target")}
    plan = plan_pair(left, right, dims, session.contexts, session.aligner, joined=True)
    if plan.tokens is None:
        return None
    aligned = align(plan)
    if aligned.baseline.dtype.kind in "iub" or aligned.baseline.shape != aligned.target.shape:
        return None
    sides = [np.asarray(side, np.float32).reshape(len(side), -1) for side in (aligned.baseline, aligned.target)]
    labels = label_rows(len(sides[0]), plan.tokens.sequence, plan.tokens.position, _steps(plan))
    tags = dict(pair.tags)
    layer = tags.pop("layer_id", None)
    key = TapKey(pair.name, None if layer is None else int(layer), tuple(sorted((k, str(v)) for k, v in tags.items())))
    dtypes = (left.records[0].dtype or "", right.records[0].dtype or "")
    ranks = max(len({record.rank for record in side.records}) for side in (left, right))
    return Family(key, SideRows(sides[0], sides[1], labels), dtypes, ranks)


def _steps(plan: PairPlan) -> np.ndarray | None:
    tokens = plan.tokens
    if tokens is None or tokens.target is None:
        return None
    steps = np.concatenate([np.full(part.rows, part.step or 0) for part in plan.target.parts])
    return steps[tokens.target]


def profiles_of(baseline: Path, target: Path, top_k: int | None = None) -> tuple[list[TapProfile], TapGraph]:
    found = families(baseline, target)
    graph = build_graph([TapDeclaration(one.key) for one in found])
    assert not isinstance(graph, GraphError)
    by_key = {one.key: one for one in found}
    profiles = []
    for one in found:
        node = graph.node(one.key)
        assert node is not None
        rows = TapRows(
            one.key,
            one.values,
            *one.dtypes,
            operands=tuple(by_key[key].values for key in node.operands),
            router=by_key[node.router].values if node.router else None,
            top_k=top_k,
            ranks=one.ranks,
        )
        profiles.append(profile(rows, node))
    return profiles, graph


def diagnose_runs(baseline: Path, target: Path, top_k: int | None = None, options: Options | None = None) -> Diagnosis:
    profiles, graph = profiles_of(baseline, target, top_k)
    return diagnose(profiles, graph, options)


def digest(run: Path) -> str:
    """A digest of all values of a run, whatever the file around them."""
    found = hashlib.sha256()
    for record in open_run(run).records:
        if record.kind == "tensor" and record.level == "full":
            found.update(f"{record.name} {dict(record.tags)} {record.step}".encode())
            found.update(np.ascontiguousarray(record.array()).tobytes())
    return found.hexdigest()

"""A small inference engine that schedules requests and writes down the token layout of every pass.

It has what makes two runs of the same requests look different: batching, chunked prefill, mixed passes, a prefix
cache, retraction, data-parallel ranks that idle, speculative verification. Token ids are given, not sampled, so
that two runs of the same requests compute the same tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dumper.layout import DataParallelRows, SequenceSpan, TokenLayout


@dataclass(frozen=True)
class Request:
    id: str
    prompt: tuple[int, ...]
    output: tuple[int, ...] = ()
    """Tokens that are sampled; the last one is never computed."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """What is computed, given time and no cache."""
        return self.prompt + self.output[:-1]


@dataclass(frozen=True)
class Engine:
    """How requests are served."""

    data_parallel: int = 1
    attention_tensor_parallel: int = 1
    padding: str = "max_len"
    chunk: int | None = None
    """Most prefill tokens of a pass on a rank."""
    max_running: int = 4
    mixed: bool = False
    """Prefill and decode share passes."""
    mixed_mode: str = "mixed"
    """What such a pass is called: ``extend`` in newer releases of SGLang."""
    cache_page: int | None = None
    """Page size of a prefix cache; None: no cache."""
    retract_at: frozenset[int] = frozenset()
    """Passes before which the youngest running request of every rank is retracted."""
    loses_sampled: bool = False
    """Whether a retracted request loses the token sampled last, as with overlapped scheduling."""
    drafts: int = 0
    """Tokens that speculative decoding verifies in a pass beside the sampled one."""
    branches: int = 1
    """Drafts of each position; with more than one they are a tree, of which the layout tells the branches."""
    tells_branches: bool = True
    """Whether it does."""
    idle_dummy_row: bool = True
    """Whether idle ranks bring a row of their own when nobody prefills."""
    idle_prefill_row: bool = False
    """Whether they do so while others prefill, too."""
    pad_to: int = 1
    """Rows of a pass are padded to a multiple of this."""
    seed: int = 0
    """Chooses the rank of each request and how many drafts are accepted."""


@dataclass(frozen=True)
class RankPass:
    """One pass on one data-parallel rank."""

    layout: TokenLayout
    prefixes: tuple[tuple[int, ...], ...]
    """Per row the tokens up to and with it, as this pass sees them; empty for padding."""


@dataclass(frozen=True)
class Schedule:
    engine: Engine
    passes: tuple[tuple[RankPass, ...], ...]
    """Per step, per data-parallel rank."""


@dataclass
class _Served:
    request: Request
    computed: int = 0
    """Tokens of which the cache of keys and values is filled."""
    target: int = 0
    """Tokens that prefill has to reach."""
    sampled: int = 0
    """Length of the sequence as far as it is known, the token sampled last included."""

    @property
    def prefilling(self) -> bool:
        return self.computed < self.target

    @property
    def done(self) -> bool:
        return self.computed >= len(self.request.tokens)


@dataclass
class _Rank:
    waiting: list[_Served]
    running: list[_Served] = field(default_factory=list)
    cached: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class _Work:
    """The rows of one sequence in a pass."""

    span: SequenceSpan
    tokens: tuple[int, ...]
    prefix: tuple[int, ...]
    parents: tuple[int, ...] | None = None
    """In a tree of drafts, per row the one that it follows, -1 for the first."""

    @property
    def depths(self) -> list[int]:
        """Per row how far its position is behind the first one's."""
        if self.parents is None:
            return list(range(len(self.tokens)))
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        """Per row the tokens up to and with it."""
        if self.parents is None:
            return [self.prefix + self.tokens[: number + 1] for number in range(len(self.tokens))]
        found: list[tuple[int, ...]] = []
        for parent, token in zip(self.parents, self.tokens, strict=True):
            found.append((*(self.prefix if parent < 0 else found[parent]), token))
        return found


def serve(requests: list[Request], engine: Engine) -> Schedule:
    """Serve all requests to the end."""
    chance = random.Random(engine.seed)
    ranks = [_Rank([]) for _ in range(engine.data_parallel)]
    for request in requests:
        served = _Served(request, target=len(request.prompt), sampled=len(request.prompt) + 1)
        chance.choice(ranks).waiting.append(served)
    passes: list[tuple[RankPass, ...]] = []
    while any(rank.waiting or rank.running for rank in ranks):
        if len(passes) in engine.retract_at:
            for rank in ranks:
                _retract(rank, engine)
        planned = [_next_pass(rank, engine, chance) for rank in ranks]
        passes.append(_padded([(mode, work) for mode, work in planned], engine))
        assert len(passes) < 10_000, "the engine makes no progress"
    return Schedule(engine, tuple(passes))


def _retract(rank: _Rank, engine: Engine) -> None:
    decoding = [served for served in rank.running if not served.prefilling]
    if not decoding:
        return
    served = decoding[-1]
    rank.running.remove(served)
    if engine.cache_page is not None:
        rank.cached.append(served.request.tokens[: served.computed])
    known = served.sampled - 1 if engine.loses_sampled else served.sampled
    served.computed, served.target = 0, min(known, len(served.request.tokens))
    rank.waiting.insert(0, served)


def _next_pass(rank: _Rank, engine: Engine, chance: random.Random) -> tuple[str, list[_Work]]:
    budget = engine.chunk or 10**9
    prefill: list[_Served] = [served for served in rank.running if served.prefilling]
    while rank.waiting and len(rank.running) < engine.max_running and len(prefill) < 3:
        served = rank.waiting.pop(0)
        served.computed = _cached_length(rank, served, engine)
        rank.running.append(served)
        prefill.append(served)
    work: list[_Work] = []
    decoding = [served for served in rank.running if not served.prefilling and not served.done]
    if prefill:
        for served in prefill:
            count = min(budget, served.target - served.computed)
            if count > 0:
                work.append(_computed(served, served.computed, count))
                served.computed += count
                budget -= count
                if not served.prefilling:
                    served.sampled = served.computed + 1
        mode = "extend"
        if engine.mixed and decoding:
            mode = engine.mixed_mode
            work.extend(_decoded(served) for served in decoding)
    elif engine.drafts and decoding:
        mode = "target_verify"
        verify = _verified if engine.branches == 1 else _verified_tree
        work.extend(verify(served, engine, chance) for served in decoding)
    else:
        mode = "decode" if decoding else "idle"
        work.extend(_decoded(served) for served in decoding)
    for served in [served for served in rank.running if not served.prefilling and served.done]:
        rank.running.remove(served)
        rank.cached.append(served.request.tokens)
    return mode, work


def _cached_length(rank: _Rank, served: _Served, engine: Engine) -> int:
    if engine.cache_page is None:
        return 0
    wanted = served.request.tokens[: served.target]
    longest = 0
    for known in rank.cached:
        common = 0
        while common < min(len(known), len(wanted)) and known[common] == wanted[common]:
            common += 1
        longest = max(longest, common)
    longest = min(longest, len(wanted) - 1)
    return longest - longest % engine.cache_page


def _computed(served: _Served, start: int, count: int) -> _Work:
    tokens = served.request.tokens
    return _Work(SequenceSpan(served.request.id, start, count), tokens[start : start + count], tokens[:start])


def _decoded(served: _Served) -> _Work:
    work = _computed(served, served.computed, 1)
    served.computed += 1
    served.sampled = served.computed + 1
    return work


def _verified_tree(served: _Served, engine: Engine, chance: random.Random) -> _Work:
    """One true token and a tree behind it, in the order of depth; only siblings have different tokens."""
    true, start = served.request.tokens, served.computed
    accepted = min(chance.randint(0, engine.drafts), len(true) - start - 1)
    tokens, parents, last, at = [true[start]], [-1], [0], 0
    for depth in range(1, engine.drafts + 1):
        right = true[start + depth] if start + depth < len(true) else 0
        level = [(at, right)] if depth <= accepted else []
        while len(level) < engine.branches:
            parent = chance.choice(last)
            # The true token behind a wrong one, too; behind the right one it would be accepted.
            token = right if parent != at and chance.random() < 0.5 else 1000 + chance.randrange(4)
            if (parent, token) not in level and (parent != at or token != right):
                level.append((parent, token))
        chance.shuffle(level)
        begin = len(tokens)
        parents += [parent for parent, _ in level]
        tokens += [token for _, token in level]
        at = begin + level.index((at, right)) if depth <= accepted else -1
        last = list(range(begin, len(tokens)))
    served.computed = start + 1 + accepted
    served.sampled = served.computed + 1
    return _Work(SequenceSpan(served.request.id, start, len(tokens)), tuple(tokens), true[:start], tuple(parents))


def _verified(served: _Served, engine: Engine, chance: random.Random) -> _Work:
    """One true token and drafts after it: some are right, the first wrong one makes the rest useless."""
    true = served.request.tokens
    start = served.computed
    drafts = engine.drafts
    accepted = min(chance.randint(0, drafts), len(true) - start - 1)
    tokens = list(true[start : start + 1 + accepted])
    while len(tokens) < drafts + 1:
        position = start + len(tokens)
        wrong = 1000 + chance.randrange(1000)
        tokens.append(wrong if position >= len(true) or wrong != true[position] else wrong + 1)
    served.computed = start + 1 + accepted
    served.sampled = served.computed + 1
    return _Work(SequenceSpan(served.request.id, start, drafts + 1), tuple(tokens), true[:start])


def _padded(planned: list[tuple[str, list[_Work]]], engine: Engine) -> tuple[RankPass, ...]:
    """The layouts of all ranks of a pass, with the padding that data-parallel attention brings."""
    real = [sum(work.span.count for work in works) for _, works in planned]
    rows = [_rounded(count, engine.pad_to) for count in real]
    prefills = any(mode in {"extend", "mixed"} for mode, _ in planned)
    if engine.data_parallel > 1 and (engine.idle_prefill_row if prefills else engine.idle_dummy_row):
        rows = [max(count, 1) for count in rows]
    if engine.data_parallel > 1 and engine.padding == "max_len":
        rows = [max(rows)] * len(rows)
    found = []
    for index, (mode, works) in enumerate(planned):
        share = None
        if engine.data_parallel > 1:
            share = DataParallelRows(
                axis="attn_dp",
                rank=index,
                size=engine.data_parallel,
                rows=tuple(rows),
                real_rows=tuple(real),
                padding="max_len" if engine.padding == "max_len" else "sum_len",
            )
        tokens = [token for work in works for token in work.tokens]
        prefixes = [prefix for work in works for prefix in work.prefixes]
        padding = rows[index] - len(tokens)
        layout = TokenLayout(
            forward_mode=mode,
            sequences=tuple(work.span for work in works),
            rows=rows[index],
            token_ids=np.array(tokens + [0] * padding, np.int64),
            data_parallel=share,
            **(_branches(works, padding, engine) if mode == "target_verify" and engine.branches > 1 else {}),
        )
        found.append(RankPass(layout, (*prefixes, *[()] * padding)))
    return tuple(found)


def _branches(works: list[_Work], padding: int, engine: Engine) -> dict[str, Any]:
    """What the layout of a pass over trees of drafts says of each row."""
    sequence = [index for index, work in enumerate(works) for _ in work.tokens]
    position = [work.span.start + depth for work in works for depth in work.depths]
    parents: list[int] = []
    for work in works:
        first = len(parents)
        parents += [parent if parent < 0 else first + parent for parent in work.parents or ()]
    return {
        "row_sequence": np.array(sequence + [-1] * padding, np.int32),
        "row_position": np.array(position + [0] * padding, np.int64),
        "extra": {"parents": parents} if engine.tells_branches else {},
    }


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def train_pass(requests: list[Request], *, pad_to: int = 1) -> Schedule:
    """All tokens of all requests in one packed pass, as a trainer rescores them."""
    works = [
        _Work(SequenceSpan(f"packed-{index}", 0, len(request.tokens)), request.tokens, ())
        for index, request in enumerate(requests)
    ]
    engine = Engine(pad_to=pad_to)
    return Schedule(engine, (_padded([("train", works)], engine),))


def padded_batches(requests: list[Request], *, batch: int, side: str) -> Schedule:
    """Batches as Transformers generates them: a padded prefill, then one column per pass.

    ``side`` is ``left`` or ``right``: where the padding of the prefill is. Ids are the rows of the batch and are
    used again by the next batch.
    """
    passes: list[tuple[RankPass, ...]] = []
    for begin in range(0, len(requests), batch):
        group = requests[begin : begin + batch]
        width = max(len(request.prompt) for request in group)
        starts = [width - len(request.prompt) if side == "left" else 0 for request in group]
        columns = [(start, 0, len(request.prompt)) for start, request in zip(starts, group, strict=True)]
        passes.append((_batch_pass(group, columns, width, "prefill"),))
        for column in range(max(len(request.output) for request in group) - 1):
            at = [(0, len(request.prompt) + column, int(column < len(request.output) - 1)) for request in group]
            passes.append((_batch_pass(group, at, 1, "decode"),))
    return Schedule(Engine(), tuple(passes))


def _batch_pass(group: list[Request], columns: list[tuple[int, int, int]], width: int, mode: str) -> RankPass:
    """``columns`` holds per request (first column, first position, tokens)."""
    sequence = np.full((len(group), width), -1, np.int32)
    position = np.zeros((len(group), width), np.int64)
    token = np.zeros((len(group), width), np.int64)
    prefixes: list[tuple[int, ...]] = []
    spans = []
    for row, (request, (column, start, count)) in enumerate(zip(group, columns, strict=True)):
        sequence[row, column : column + count] = row
        position[row, column : column + count] = np.arange(start, start + count)
        token[row, column : column + count] = request.tokens[start : start + count]
        spans.append(SequenceSpan(f"row-{row}", start, count))
        for at in range(width):
            inside = column <= at < column + count
            prefixes.append(request.tokens[: start + at - column + 1] if inside else ())
    layout = TokenLayout(
        forward_mode=mode,
        sequences=tuple(spans),
        rows=sequence.size,
        token_ids=token.reshape(-1),
        row_sequence=sequence.reshape(-1),
        row_position=position.reshape(-1),
        batch_shape=(len(group), width),
    )
    return RankPass(layout, tuple(prefixes))


def with_ids(requests: list[Request], prefix: str) -> list[Request]:
    """The same requests under other ids."""
    return [replace(request, id=f"{prefix}{index}") for index, request in enumerate(requests)]

"""Ranks agree on the step at which a change takes effect, whatever the order in which things happen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper.control import files
from dumper.control.controller import effective_steps
from dumper.control.participant import Participant, Place
from dumper.format import json_files


class Recorder:
    """What a rank would record with: remembers at which step a change came."""

    def __init__(self) -> None:
        self.participant: Participant | None = None
        self.applied: list[tuple[int, dict[str, Any]]] = []

    def apply(self, changes: dict[str, Any]) -> None:
        assert self.participant is not None
        self.applied.append((self.participant.step, changes))

    def state(self) -> dict[str, Any]:
        return {"settings": {"enable": False, "filter": None}}


class Engine:
    """Ranks and one controller over a real folder, each moved by hand; time passes only when a rank waits."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder = folder
        self.time = 0.0
        self.recorders = [Recorder() for _ in range(ranks)]
        self.ranks = []
        self.waiting = [False] * ranks
        self.moves: list[Callable[[], None]] = []
        for rank, recorder in enumerate(self.recorders):
            participant = Participant(
                folder,
                Place(rank, ranks),
                recorder,
                now=lambda: self.time,
                sleep=lambda seconds, rank=rank: self.wait(rank),
            )
            recorder.participant = participant
            self.ranks.append(participant)

    def wait(self, rank: int) -> None:
        """A rank waits at a step: the others go on, and time passes."""
        self.time += 0.3
        self.waiting[rank] = True
        if self.moves:
            self.moves.pop(0)()
        self.waiting[rank] = False

    def step(self, rank: int) -> None:
        if not self.waiting[rank]:
            self.ranks[rank].at_step(self.ranks[rank].step + 1)

    def poll(self, rank: int) -> None:
        self.ranks[rank].poll()

    def propose(self, changes: dict[str, Any]) -> None:
        json_files.create(files.command(self.folder, 1), {"changes": changes, "timeout": 30.0})
        json_files.write(files.latest(self.folder), {"generation": 1})

    def plan(self, margin: int) -> None:
        words = [json_files.read(files.acknowledgement(self.folder, 1, rank)) for rank in range(len(self.ranks))]
        if all(words) and not files.plan(self.folder, 1).exists():
            step = max(word["step"] for word in words if word) + margin
            json_files.write(files.plan(self.folder, 1), {"effective": {"0": step}})

    def decide(self) -> None:
        answers = [json_files.read(files.answer(self.folder, 1, rank)) for rank in range(len(self.ranks))]
        if all(answers):
            in_time = all(answer["in_time"] for answer in answers if answer)
            json_files.create(files.outcome(self.folder, 1), {"commit": in_time})


RANKS = 3
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(0, RANKS - 1)),
        st.tuples(st.just("poll"), st.integers(0, RANKS - 1)),
        st.tuples(st.just("plan"), st.integers(0, 3)),
        st.tuples(st.just("decide"), st.just(0)),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(moves=MOVES)
def test_all_ranks_change_at_one_step_or_none_does(moves: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Path(folder), RANKS)
        engine.propose({"enable": True})
        actions: dict[str, Callable[[int], None]] = {
            "step": engine.step,
            "poll": engine.poll,
            "plan": engine.plan,
            "decide": lambda _: engine.decide(),
        }
        engine.moves = [lambda name=name, value=value: actions[name](value) for name, value in moves]
        while engine.moves:
            engine.moves.pop(0)()
        # Whatever is open is brought to an end: every rank polls and makes steps beyond any agreed one.
        for _ in range(8):
            for rank in range(RANKS):
                engine.poll(rank)
            engine.plan(2)
            engine.decide()
            for rank in range(RANKS):
                for _ in range(15):
                    engine.step(rank)
        changed_at = {recorder.applied[0][0] if recorder.applied else None for recorder in engine.recorders}
        assert len(changed_at) == 1
        assert all(len(recorder.applied) <= 1 for recorder in engine.recorders)
        outcome = json_files.read(files.outcome(engine.folder, 1))
        assert outcome is not None
        assert (changed_at != {None}) == outcome["commit"]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path, 2)


def all_poll(engine: Engine) -> None:
    for rank in range(len(engine.ranks)):
        engine.poll(rank)


def test_an_idle_engine_changes_with_its_next_pass(engine: Engine) -> None:
    engine.propose({"enable": True})
    all_poll(engine)
    engine.plan(2)
    all_poll(engine)
    engine.decide()
    for rank in (0, 1):
        engine.step(rank)
        assert engine.recorders[rank].applied == []
        engine.step(rank)
        assert engine.recorders[rank].applied == [(1, {"enable": True})]


def test_a_rank_that_reaches_the_step_first_waits_for_the_decision(engine: Engine) -> None:
    engine.propose({"enable": True})
    all_poll(engine)
    engine.plan(1)
    all_poll(engine)
    engine.moves = [engine.decide]
    engine.step(0)  # reaches step 0, which is not decided yet
    assert engine.time > 0
    engine.step(1)
    assert [recorder.applied for recorder in engine.recorders] == [[(0, {"enable": True})]] * 2


def test_a_late_rank_calls_the_change_off_for_all(engine: Engine) -> None:
    engine.propose({"enable": True})
    all_poll(engine)
    engine.plan(1)
    engine.poll(0)
    engine.step(1)  # before it has read the plan
    engine.poll(1)
    engine.decide()
    engine.step(0)
    engine.step(0)
    engine.step(1)
    assert [recorder.applied for recorder in engine.recorders] == [[], []]


def test_a_controller_that_dies_holds_nobody_up(engine: Engine) -> None:
    engine.propose({"enable": True})
    all_poll(engine)
    engine.plan(1)
    all_poll(engine)
    engine.step(0)
    engine.step(1)
    assert engine.time < 5
    assert [recorder.applied for recorder in engine.recorders] == [[], []]
    outcome = json_files.read(files.outcome(engine.folder, 1))
    assert outcome is not None
    assert "rank 0 reached step 0 without a decision" in outcome["reason"]


def test_what_was_decided_before_a_rank_came_is_not_for_it(engine: Engine) -> None:
    engine.propose({"enable": True})
    json_files.create(files.outcome(engine.folder, 1), {"commit": True})
    recorder = Recorder()
    recorder.participant = Participant(engine.folder, Place(0, 1), recorder)
    recorder.participant.poll()
    recorder.participant.at_step(0)
    assert recorder.applied == []
    assert not files.acknowledgement(engine.folder, 1, 0).exists()


def test_next_steps_count_from_where_the_change_takes_effect_and_reset_goes_back(engine: Engine) -> None:
    for changes, expected in (
        ({"steps": "next 3"}, {"steps": "1-3"}),
        ({"reset": True}, {"enable": False, "filter": None}),
    ):
        engine.__init__(Path(tempfile.mkdtemp(dir=engine.folder)), 1)  # type: ignore[misc]
        engine.propose(changes)
        all_poll(engine)
        engine.plan(2)
        all_poll(engine)
        engine.decide()
        engine.step(0)
        engine.step(0)
        assert engine.recorders[0].applied == [(1, expected)]


def test_the_margin_follows_the_rate_and_replicas_have_steps_of_their_own() -> None:
    steps = [("0", 1000), ("0", 1003), ("1", 5)]
    assert effective_steps(steps, {"0": 100.0}, 0.5) == {"0": 1054, "1": 6}

"""Ranks of a process group on this machine, forked from one process that has imported what they all need."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")
SECONDS = 300.0
"""Until a rank has to have answered. It takes seconds; a busy machine makes minutes of them."""
PR_SET_PDEATHSIG = 1
"""From ``linux/prctl.h``."""


class RankError(RuntimeError):
    """A rank that failed, with its traceback, or said nothing."""


def run_ranks(
    program: Callable[..., Result], size: int, *arguments: Any, prepare: Callable[..., None] | None = None
) -> list[Result]:
    """What ``program(rank, *arguments)`` returns in each of ``size`` processes, by rank. Raises RankError.

    ``prepare(*arguments)`` runs once before, in the process that the ranks are forked from: it imports what takes long.
    All of them have to be picklable.
    """
    here, there = multiprocessing.Pipe()
    leader = multiprocessing.get_context("spawn").Process(target=_lead, args=(program, size, arguments, prepare, there))
    leader.start()
    there.close()
    try:
        answers = here.recv() if here.poll(2 * SECONDS) else [(None, "the process that forks the ranks says nothing")]
    except EOFError:
        answers = [(None, "the process that forks the ranks ended before it answered")]
    finally:
        leader.kill()
        leader.join()
    for rank, (_, error) in enumerate(answers):
        if error is not None:
            raise RankError(f"rank {rank}: {error}")
    return [result for result, _ in answers]


def _lead(
    program: Callable[..., Any],
    size: int,
    arguments: tuple[Any, ...],
    prepare: Callable[..., None] | None,
    answers: Connection,
) -> None:
    if prepare is not None:
        prepare(*arguments)
    context = multiprocessing.get_context("fork")
    pipes = []
    for rank in range(size):
        here, there = context.Pipe()
        context.Process(target=_run_rank, args=(program, rank, arguments, there), daemon=True).start()
        there.close()
        pipes.append(here)
    answers.send([_answer(pipe) for pipe in pipes])


def _answer(pipe: Connection) -> tuple[Any, str | None]:
    try:
        return pipe.recv() if pipe.poll(SECONDS) else (None, f"no answer within {SECONDS:.0f} s")
    except EOFError:
        return None, "it ended before it answered"


def _run_rank(program: Callable[..., Any], rank: int, arguments: tuple[Any, ...], answer: Connection) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        answer.send((program(rank, *arguments), None))
    except BaseException:
        answer.send((None, traceback.format_exc()))

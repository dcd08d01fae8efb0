"""What the processes of a run counted, held against what its files hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from dumper.format.run_files import MOST_RANKS, STATUS_FILE
from dumper.format.status import STATUS_BYTES, read_status, run_id_of
from dumper.reading.headers import MOST_NAMED, ranges
from dumper.reading.protocol import GraphCoverage, Problem
from dumper.storage.places import Place, each, read_bytes

LOSS_WORDS = {
    "lost_full_memory": "dropped because the memory budget was full",
    "lost_encoding": "could not be encoded",
    "lost_writing": "could not be written",
    "lost_claimed": "of a process that found the rank's file already taken",
    "lost_ended": "came when the process had already ended the recording",
}


class Account(Struct, frozen=True):
    """The counts of one process; several processes may have had one rank."""

    rank: int
    counts: Mapping[str, int]

    @property
    def in_memory(self) -> int:
        """Values that the process took and never did anything with: it was killed, or left past its own end."""
        done = self.counts["written"] + self.counts["held_back"] + sum(self.counts[reason] for reason in LOSS_WORDS)
        return max(0, self.counts["submitted"] - done)

    @property
    def lost(self) -> int:
        """Values that the process took and did not write."""
        return sum(self.counts[reason] for reason in LOSS_WORDS) + self.in_memory

    def with_written(self, records: int) -> Account:
        """This account where ``records`` values of those that seem to be in memory are in the files."""
        surplus = min(max(0, records - self.counts["written"]), self.in_memory)
        return replace(self, counts={**self.counts, "written": self.counts["written"] + surplus})

    @property
    def run_id(self) -> str | None:
        return run_id_of(self.counts)


def read_accounts(path: Place) -> tuple[list[Account], list[Problem]]:
    """All status files of a run, and what is wrong with those that cannot be read."""
    accounts, problems = [], []
    in_order: list[Place] = sorted(path.glob("rank-*.status"), key=lambda file: file.name)
    files = (file for file in in_order if STATUS_FILE.fullmatch(file.name))
    for file, content in each(lambda file: read_bytes(file, STATUS_BYTES), files):
        found = STATUS_FILE.fullmatch(file.name)
        assert found is not None
        rank = int(found["rank"])
        reason = "cannot be read as counts"
        if isinstance(content, OSError):
            counts, reason = None, str(content.strerror)
        else:
            counts = read_status(content) if rank < MOST_RANKS else None
        if counts is None:
            problems.append(Problem("unreadable", f"{file.name} {reason}; what is missing in the run is not known"))
        else:
            accounts.append(Account(rank, counts))
    return accounts, problems


def problems_of_account(account: Account) -> list[Problem]:
    """What a process counted that its reader should know."""
    rank, counts = account.rank, account.counts
    found = [
        Problem("lost", f"rank {rank}: {counts[reason]} values {words}")
        for reason, words in LOSS_WORDS.items()
        if counts[reason]
    ]
    if left := account.in_memory:
        found.append(Problem("lost", f"rank {rank}: {left} values were still in memory when the process ended"))
    if counts["failed_taps"]:
        found.append(Problem("lost", f"rank {rank}: taps failed {counts['failed_taps']} times to give a value or tag"))
    return found


def problems_of_graphs(graphs: GraphCoverage) -> list[Problem]:
    """What of CUDA graphs is not in the run."""
    found = []
    if graphs.left_out_values:
        taps = len({name for name, _, _ in graphs.left_out})
        found.append(
            f"{graphs.left_out_values} values of {taps} taps were left out of CUDA graphs; dumper ls says which and why"
        )
    if graphs.silent_replays:
        found.append(
            f"{graphs.silent_replays} replays of CUDA graphs recorded nothing, since these were captured while"
            " recording was off"
        )
    if graphs.unknown_captures:
        found.append(f"{graphs.unknown_captures} values went into captures of which torch.cuda.CUDAGraph knows nothing")
    return [Problem("left_out", f"rank {graphs.rank}: {message}") for message in found]


def brought_up_to_date(accounts: Iterable[Account], records: Mapping[int, int]) -> list[Account]:
    """The accounts, with what a process wrote and had not counted yet when it was killed.

    ``records``: by rank, how many records its files hold. Where several processes had one rank, nobody can tell whose
    the record is, and the counts stay.
    """
    accounts = list(accounts)
    processes = Counter(account.rank for account in accounts)
    return [
        account.with_written(records.get(account.rank, 0)) if processes[account.rank] == 1 else account
        for account in accounts
    ]


def missing_records(
    accounts: Iterable[Account], records: Mapping[int, int], next_order: Mapping[int, int]
) -> dict[int, tuple[int, int]]:
    """By rank, how many records were written and how many of them are not in its files, where some are not.

    ``records``: how many there are; ``next_order``: one more than the highest number that a record of the rank has,
    for ranks of which no counts are left.
    """
    written: dict[int, int] = {}
    for account in accounts:
        written[account.rank] = written.get(account.rank, 0) + account.counts["written"]
    expected = {rank: min(number, MOST_RECORDS) for rank, number in {**next_order, **written}.items()}
    return {
        rank: (number, number - records.get(rank, 0))
        for rank, number in sorted(expected.items())
        if number > records.get(rank, 0)
    }


MOST_RECORDS = 1 << 48
"""Records of a rank; larger numbers are not believed."""


def mixed_runs(run_ids: Mapping[int, Iterable[str]], world_sizes: Mapping[int, int]) -> list[Problem]:
    """Files of several launches in one directory; by rank, the ids in its files, and the world size it was one of."""
    found = []
    by_id: dict[str, set[int]] = {}
    for rank, ids in run_ids.items():
        for identity in ids:
            by_id.setdefault(identity, set()).add(rank)
    if len(by_id) > 1:
        parts = "; ".join(f"run {identity[:8]}: rank {ranges(ranks)}" for identity, ranks in list(by_id.items())[:5])
        found.append(Problem("mixed_runs", f"the files are of {len(by_id)} different runs ({parts})"))
    by_size: dict[int, set[int]] = {}
    for rank, size in world_sizes.items():
        by_size.setdefault(size, set()).add(rank)
    if len(by_size) > 1:
        parts = "; ".join(f"world size {size}: rank {ranges(ranks)}" for size, ranks in sorted(by_size.items())[:5])
        found.append(Problem("mixed_runs", f"the ranks are of worlds of different sizes ({parts})"))
    return found


def repairs(name: str, metas: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """What ``repair`` said in a file that it made."""
    found = []
    for meta in metas:
        listed = meta.get("left_out")
        parts = [str(part) for part in listed if isinstance(part, str)] if isinstance(listed, list) else []
        more = f", and {len(parts) - MOST_NAMED} more" if len(parts) > MOST_NAMED else ""
        left_out = f"left out was {', '.join(parts[:MOST_NAMED])}{more}" if parts else "nothing was left out"
        aside = meta.get("aside")
        kept = f"; the file as it was is {aside}" if isinstance(aside, str) else ""
        found.append(Problem("repaired", f"{name} was repaired: {left_out}{kept}"))
    return found

"""What the processes of a run counted, held against what its files hold."""

from __future__ import annotations

from pathlib import Path

from dumper import open_run
from dumper.format.run_files import status_path
from dumper.format.status import COUNTS, StatusBlock
from dumper.readers.streams.accounts import Account, brought_up_to_date
from dumper.reading.protocol import Written


def account(rank: int, **counts: int) -> Account:
    return Account(rank, {**dict.fromkeys(COUNTS, 0), **counts})


def test_a_record_that_was_written_and_not_yet_counted_is_not_lost() -> None:
    killed = account(0, submitted=10, written=6, lost_encoding=1)
    (found,) = brought_up_to_date([killed], {0: 7})
    assert found.counts["written"] == 7
    assert found.lost == 3


def test_records_beyond_what_was_submitted_excuse_no_loss() -> None:
    damaged = account(0, submitted=10, written=6, lost_encoding=4)
    (found,) = brought_up_to_date([damaged], {0: 9})
    assert found.lost == 4


def test_two_processes_of_one_rank_keep_their_counts() -> None:
    both = [account(0, submitted=10, written=6), account(0, submitted=3)]
    assert brought_up_to_date(both, {0: 9}) == both


def test_a_run_that_has_counts_and_no_file_so_far_goes_on_until_its_processes_have_ended(tmp_path: Path) -> None:
    status = StatusBlock(status_path(tmp_path, 0))
    status.add("submitted", 2)
    assert open_run(tmp_path).written() == Written(None, closed=False)
    status.add("closed")
    assert open_run(tmp_path).written() == Written(None, closed=True)

"""A pytest fixture that records inside a test.

    def test_refactoring_changes_nothing(tensortap_record):
        with tensortap_record("before") as before:
            old_model(inputs)
        with tensortap_record("after") as after:
            new_model(inputs)
        comparator.assert_runs_match(before, after)

Installed with the package (entry point ``pytest11``). pytest imports this module at every start, in every project; so
it is one of its own and imports none of the packages before a test asks for the fixture: a test tree may have packages
of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

Record = Callable[..., AbstractContextManager[Path]]


@pytest.fixture
def tensortap_record(tmp_path: Path) -> Record:
    """A function ``(name, **settings)`` that gives a context in which everything dumped goes into a run of its own.

    The context is the path of the run, complete when the context ends. ``settings`` are those of
    ``dumper.configure``; those in force before are back afterwards.
    """
    from dumper import dumper

    before = dumper.settings

    @contextmanager
    def record(name: str = "run", **settings: Any) -> Iterator[Path]:
        dumper.close()
        dumper.configure(enable=True, dir=str(tmp_path), run=name, **settings)
        try:
            yield tmp_path / name
        finally:
            dumper.close()
            dumper.configure(enable=before.enable, dir=before.dir, run=before.run, **_others(before, settings))

    return record


def _others(before: Any, changed: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(before, key) for key in changed}

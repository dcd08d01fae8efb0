"""Changes what is patched into a running server and where it records, so that one server serves many recordings.

A server is started with the ``switch.yaml`` of its engine, which calls ``follow`` on every rank before each pass.
Between two requests the file named by ``TENSORTAP_FAULTS_SWITCH`` may be written anew; the ranks see it with the next
pass, all before the same one, because no pass is under way.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "TENSORTAP_FAULTS_SWITCH"


@dataclass(frozen=True)
class Setting:
    """What a server does from the next request on."""

    number: int
    """Counts up; a setting with a new number is taken over."""
    run: str | None
    """The run directory; None: nothing is recorded."""
    configs: tuple[str, ...]
    """Paths of patch configs, taps and faults."""

    def write(self, path: Path) -> None:
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.rename(path)


_now = 0
_applied: Any = None


def follow() -> None:
    """Take the setting over when there is a new one."""
    global _now, _applied  # noqa: PLW0603  one process follows one file
    try:
        found = json.loads(Path(os.environ[VARIABLE]).read_text())
    except FileNotFoundError:
        return
    if found["number"] == _now:
        return
    import patcher
    from dumper import dumper

    dumper.close()
    dumper.configure(enable=False)
    if _applied is not None:
        _applied.undo()
        _applied = None
    _now = found["number"]
    if found["run"] is not None:
        run = Path(found["run"])
        _applied = patcher.apply(*map(Path, found["configs"]))
        dumper.configure(enable=True, dir=str(run.parent), run=run.name, control=False)

"""Commands launched with patch configs in a folder of their own, and what they recorded."""

from __future__ import annotations

import os
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dumper import open_run
from testbed.forked import light_host

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    run: Path

    def recorded(self) -> dict[str, int]:
        """How often each name was recorded."""
        if not self.run.is_dir():
            return {}
        return dict(Counter(record.name for record in open_run(self.run).records))

    def silent(self) -> str:
        """What the run says of taps that did not fire."""
        return "\n".join(open_run(self.run).silent_taps)


def write(folder: Path, **files: str) -> None:
    """Write files; a double underscore in a name is a folder, the extension is ``.py`` unless it is called config."""
    for name, text in files.items():
        path = folder / ("config.yaml" if name == "config" else name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")


def launch(folder: Path, *command: str, run: str = "run", **environment: str) -> Done:
    """``patcher run -c config.yaml -- python COMMAND`` in the folder, recording."""
    return patcher(
        folder, "run", "-c", "config.yaml", "--", sys.executable, *command, run=run, TENSORTAP_ENABLE="1", **environment
    )


def patcher(folder: Path, *arguments: str, run: str = "run", **environment: str) -> Done:
    """A command of the patcher in the folder."""
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "",
        "TENSORTAP_CACHE": str(folder / "patched"),
        "TENSORTAP_DIR": str(folder / "runs"),
        "TENSORTAP_RUN": run,
        **environment,
    }
    done = light_host().run("patcher", *arguments, module=True, folder=folder, environment=variables, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr, folder / "runs" / run)

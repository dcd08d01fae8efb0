"""Runs ``real_forward_batch.py`` with the sources of several SGLang releases: ``python forked_releases.py SOURCES…``.

Each release has a process of its own, forked from this one, which has imported what all of them import: that is most of
what one costs. Prints a JSON object for each: what the program printed, the error that ended it, and the package
that it imported.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import openai.types.responses
import torch._dynamo
import torchvision
import transformers.models.auto.configuration_auto

COMMON = (openai, torch, torchvision, transformers)
DRIVER = Path(__file__).with_name("real_forward_batch.py")


def run(sources: str) -> dict[str, str]:
    """What the driver prints, its traceback where it fails, and where its ``sglang`` lies."""
    sys.path.insert(0, sources)
    printed, error = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            runpy.run_path(str(DRIVER), run_name="__main__")
        except BaseException:
            error = traceback.format_exc()
    return {
        "printed": printed.getvalue(),
        "error": error,
        "package": os.path.dirname(sys.modules["sglang"].__file__ or ""),
    }


def main() -> None:
    for sources in sys.argv[1:]:
        pid = os.fork()
        if pid == 0:
            print(json.dumps(run(sources)), flush=True)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:  # it could not print its line
            print(json.dumps({"printed": "", "error": f"it ended with exit code {code}", "package": ""}), flush=True)


if __name__ == "__main__":
    main()

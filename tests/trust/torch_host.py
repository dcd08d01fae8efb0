"""Programs in processes forked from this one, which has imported torch: ``python -m tests.trust.torch_host``.

Each line of standard input is a request in JSON: ``code``, ``arguments``, ``environment``, and the files that take what
it prints, ``out`` and ``err``. It is answered by a line with the exit code. The dumper is not imported before the fork.
"""

from __future__ import annotations

import json
import os
import sys

import torch._dynamo
import torch.func
import torch.masked
import torch.testing._internal.two_tensor

IMPORTED = torch


def next_program() -> str:
    """In a forked process the code that it has to run; in this one nothing returns before the end of the input."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            for number, path in enumerate((os.devnull, request["out"], request["err"])):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            os.environ.clear()
            os.environ.update(request["environment"])
            sys.argv = ["-c", *request["arguments"]]
            return str(request["code"])
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
    sys.exit()


if __name__ == "__main__":
    # At the top of the main module, so that the process ends as that of ``python -c`` does.
    exec(compile(next_program(), "<string>", "exec"), {"__name__": "__main__"})

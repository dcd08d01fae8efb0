"""The page "Your own model on torchrun", as a reader would follow it, over gloo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dumper import open_run
from testbed.forked import ForkHost
from testbed.servers import free_port
from tests.trust.conftest import ROOT

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs/own-model.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def _run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    command = command.replace("torchrun", f"{sys.executable} -m torch.distributed.run --standalone")
    command = re.sub(r"(?<= )python |^python ", f"{sys.executable} ", command)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


TWO_RANKS = """
import os, runpy, sys
other = os.fork()
rank = str(int(other == 0))
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
runpy.run_path("own_model.py", run_name="__main__")
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""
"""What torchrun does, forked from a process that has imported torch."""


def test_from_nothing_to_a_verdict(tmp_path: Path, torch_host: ForkHost) -> None:
    model = _blocks("python")[0]
    (tmp_path / "own_model.py").write_text(model)
    record, compare = _blocks("shell")
    for command in record.splitlines():
        result = _run(tmp_path, command)
        assert result.returncode == 0, result.stderr[-3000:]
    two = open_run(tmp_path / "runs/two")
    assert [two.headers[rank].parallel["tp"] for rank in two.ranks] == [(0, 2), (1, 2)]
    assert not two.problems
    verdict = _run(tmp_path, compare.strip())
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    assert "9 passed" in verdict.stdout, verdict.stdout
    # And the fault that the page speaks of.
    (tmp_path / "own_model.py").write_text(model.replace("dist.all_reduce(summand)", "pass"))
    environment = {**os.environ, "TENSORTAP_ENABLE": "1", "TENSORTAP_DIR": "runs", "TENSORTAP_RUN": "faulty"}
    ranks = torch_host.run(TWO_RANKS, str(free_port()), folder=tmp_path, environment=environment, timeout=300)
    assert ranks.returncode == 0, ranks.stderr
    verdict = _run(tmp_path, compare.strip().replace("runs/two", "runs/faulty"))
    assert verdict.returncode == 1, verdict.stdout + verdict.stderr
    assert "6 passed" in verdict.stdout

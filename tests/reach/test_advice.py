"""What cannot be recorded is named with what to do instead, and that can be done."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from dumper import dumper, open_run

torch = pytest.importorskip("torch", reason="torch is not installed")
PARTS = [[1.0, 2.0], [3.0]]


def nested(layout: Any) -> Any:
    return torch.nested.nested_tensor([torch.tensor(part) for part in PARTS], layout=layout)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize(
    ("make", "bytes_or_parts"),
    [
        (lambda: torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), [[0, 1, 2, 3]]),
        (lambda: torch.arange(4, dtype=torch.uint8).view(torch.uint4), [[0, 1, 2, 3]]),
        (lambda: nested(torch.jagged), PARTS),
        (lambda: nested(torch.strided), PARTS),
    ],
    ids=["float4", "uint4", "jagged", "strided"],
)
def test_the_advice_can_be_followed(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    make: Any,
    bytes_or_parts: list[list[float]],
) -> None:
    value = make()
    monkeypatch.setattr(logging.getLogger("tensortap"), "disabled", True)  # as a framework's dictConfig leaves it
    monkeypatch.setattr(logging.getLogger("tensortap"), "propagate", True)
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    # Another test of this process may have made steps, and what comes outside of them is then left out.
    dumper.configure(enable=True, dir=str(tmp_path), run="run", outside_steps="record")
    try:
        dumper.dump(tmp_path.name, value)  # a message is said once for each name
        (advice,) = re.findall(r"value\.(view\(torch\.uint8\)|unbind\(\))", caplog.text)
        followed = value.view(torch.uint8) if advice.startswith("view") else value.unbind()
        dumper.dump("followed", followed)
    finally:
        dumper.close()
        dumper.configure(enable=False, outside_steps="count")
    records = open_run(tmp_path / "run").records
    assert [record.array().tolist() for record in records] == bytes_or_parts

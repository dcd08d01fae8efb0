"""Functions of torch that compiled code calls by their addresses: found where they say what Python says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dumper.recording import torch_functions
from dumper.recording.torch_functions import Functions, find_functions

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
FOUND = find_functions(PLAIN, None)


def test_this_torch_has_all_of_them() -> None:
    assert FOUND.graph_task
    assert FOUND.storage_size
    assert FOUND.storage_offset
    assert FOUND.tensor_at in (16, 24)
    assert (FOUND.current_device, FOUND.is_capturing) == (0, 0)


def test_they_are_found_wherever_a_model_runs() -> None:
    for mode in (torch.inference_mode(), torch.no_grad(), torch.device("meta"), torch.autocast("cpu")):
        with mode:
            assert find_functions(PLAIN, None) == FOUND


def test_those_of_the_runtime() -> None:
    device: Any = SimpleNamespace(address_of_current_device=5, address_of_is_capturing=7)
    assert find_functions(PLAIN, device) == FOUND._replace(current_device=5, is_capturing=7)


def test_objects_that_are_no_tensors_are_not_read_as_such() -> None:
    assert find_functions({*PLAIN, int}, None) == Functions(graph_task=FOUND.graph_task)


def test_a_tensor_that_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_functions, "_PLACES", (FOUND.tensor_at + 8,))
    assert find_functions(PLAIN, None) == Functions(graph_task=FOUND.graph_task)


@pytest.mark.parametrize("name", ["_STORAGE_SIZE", "_STORAGE_OFFSET"])
def test_functions_that_say_something_else(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch_functions, name, "aoti_torch_get_storage_numel")
    assert find_functions(PLAIN, None) == Functions(graph_task=FOUND.graph_task)


def test_a_torch_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_functions, "_STORAGE_OFFSET", "no_such_function")
    assert find_functions(PLAIN, None) == Functions(graph_task=FOUND.graph_task)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert find_functions(PLAIN, None) == Functions()
    monkeypatch.delitem(sys.modules, "torch")
    assert find_functions(PLAIN, None) == Functions()

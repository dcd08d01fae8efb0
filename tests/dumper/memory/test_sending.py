"""A slab is sent in one call as by the calls one by one: what is called, in which order, and what of an error."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from dumper.memory import sending
from dumper.memory.cuda_runtime import CudaRuntime, DeviceError

OWN, EVENT, STREAM, HOST, DEVICE, NBYTES, WORD, ONE = 7, 11, 13, 0x1000, 0x2000, 300, 0x3000, 0x4000
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "MemcpyAsync": (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t),
    "EventRecord": (ctypes.c_size_t, ctypes.c_size_t),
    "StreamWaitEvent": (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint),
    "StreamIsCapturing": (ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)),
}


class Library:
    """Notes what is called. ``answers``: what the calls give, one after the other, then 0; of questions about captures
    the code and the status."""

    def __init__(self, answers: list[int | tuple[int, int]]) -> None:
        self.answers = answers
        self.called: list[tuple[Any, ...]] = []
        self._kept: list[Any] = []

    def __getitem__(self, name: str) -> Any:
        name = name.removeprefix("cuda")

        def call(*arguments: Any) -> int:
            if name == "GetLastError":
                self.called.append((name,))
                return 0
            answer = self.answers.pop(0) if self.answers else 0
            if name == "StreamIsCapturing":
                code, arguments[1][0] = answer if isinstance(answer, tuple) else (answer, 0)
                arguments = arguments[:1]
            else:
                assert isinstance(answer, int)
                code = answer
            self.called.append((name, *arguments))
            return code

        made = ctypes.CFUNCTYPE(ctypes.c_int, *SIGNATURES.get(name, ()))(call)
        self._kept.append(made)
        return made


def sent(answers: list[int | tuple[int, int]], stream: int | None, compiled: bool) -> tuple[object, list[Any]]:
    library = Library(list(answers))
    runtime: Any = CudaRuntime(library)  # type: ignore[arg-type]
    for name, call in list(runtime._calls.items()):
        if name in SIGNATURES:
            call.argtypes = list(SIGNATURES[name])
    send = runtime.send if compiled else runtime._send_by_calls
    try:
        result: object = send(OWN, EVENT, stream, HOST, DEVICE, NBYTES, WORD, ONE)
    except DeviceError as error:
        result = str(error)
    return result, library.called


WHOLE: list[Any] = [
    ("StreamIsCapturing", STREAM),
    ("EventRecord", EVENT, STREAM),
    ("StreamIsCapturing", STREAM),
    ("StreamWaitEvent", OWN, EVENT, 0),
    ("MemcpyAsync", HOST, DEVICE, NBYTES, 2, OWN),
    ("MemcpyAsync", WORD, ONE, 8, 2, OWN),
]
ANSWERS: list[tuple[list[int | tuple[int, int]], object, list[Any]]] = [
    ([], True, WHOLE),
    ([(0, 1)], False, WHOLE[:1]),
    ([0, 0, (0, 1)], False, WHOLE[:3]),
    ([(906, 0)], False, [*WHOLE[:1], ("GetLastError",)]),
    *(
        (
            [0] * number + [700],
            f"{call[0]} of the CUDA runtime failed with error 700",
            [*WHOLE[: number + 1], ("GetLastError",)],
        )
        for number, call in enumerate(WHOLE)
    ),
]


@pytest.mark.parametrize(
    "compiled",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(sending.send is None, reason="the packages were installed without a C compiler"),
        ),
    ],
)
@pytest.mark.parametrize(("answers", "result", "called"), ANSWERS)
def test_what_is_called(
    answers: list[int | tuple[int, int]], result: object, called: list[Any], compiled: bool
) -> None:
    assert sent(answers, STREAM, compiled) == (result, called)


@pytest.mark.parametrize("compiled", [False, True])
def test_behind_an_event_that_was_recorded_before(compiled: bool) -> None:
    assert sent([], None, compiled) == (True, WHOLE[3:])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_default_stream_is_one_as_well(compiled: bool) -> None:
    assert sent([(0, 1)], 0, compiled) == (False, [("StreamIsCapturing", 0)])


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "send", None)
    assert sent([], STREAM, True) == (True, WHOLE)

"""Runs kernels in PTX on the host, as far as the one that copies needs: all threads of a grid at once, an instruction
after the other. Device memory is host memory. Branches go forward ("PTX ISA", Instruction Set)."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
_ARITHMETIC: dict[str, Callable[..., Words]] = {
    "mov": lambda a: a,
    "cvta.to.global": lambda a: a,
    "cvt.u64": lambda a: a,
    "cvt.u32": lambda a: a,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "div": lambda a, b: a // np.maximum(b, np.uint64(1)),
    "mul.lo": lambda a, b: a * b,
    "mad.lo": lambda a, b, c: a * b + c,
    "setp.ge": lambda a, b: (a >= b).astype(np.uint64),
}
_BYTES = {"u8": 1, "u32": 4, "u64": 8}


def run(ptx: str, programs: int, threads: int, arguments: Sequence[int]) -> None:
    """Run the one kernel of ``ptx``. Raises KeyError for an instruction that is not known."""
    parameters, body = _parts(ptx)
    assert len(parameters) == len(arguments)
    given = dict(zip(parameters, arguments, strict=True))
    number = np.arange(programs * threads, dtype=np.uint64)
    registers: dict[str, Words] = {
        "%tid.x": number % np.uint64(threads),
        "%ctaid.x": number // np.uint64(threads),
        "%ntid.x": np.full_like(number, threads),
    }
    active = np.ones(len(number), bool)
    waiting: dict[str, npt.NDArray[np.bool_]] = {}

    def read(name: str) -> Words:
        if name in registers:
            return registers[name]
        return np.full_like(number, given[name.strip("[]")] if name.startswith("[") else int(name))

    for line in body:
        if line.endswith(":"):
            active |= waiting.pop(line[:-1])
            continue
        guard, code, operands = _split(line)
        doing = active & (registers[guard] != 0) if guard else active
        *name, kind = code.split(".")
        if code == "bra":
            waiting[operands[0]] = waiting.get(operands[0], False) | doing
            active = active & ~doing
        elif code == "ret":
            active = active & ~doing
        elif code.startswith(("ld.global", "st.global")):
            _move(registers, code.startswith("ld"), _BYTES[kind], operands, np.flatnonzero(doing))
        else:
            operation = _ARITHMETIC["mov" if code.startswith("ld.param") else ".".join(name)]
            result = operation(*map(read, operands[1:]))
            if code.startswith("cvt.u32") or kind == "u32":
                result = result & np.uint64(0xFFFFFFFF)
            registers[operands[0]] = np.where(doing, result, registers.get(operands[0], np.zeros_like(number)))
    assert not waiting


def _parts(ptx: str) -> tuple[list[str], list[str]]:
    found = re.search(r"\.entry\s+\w+\s*\((.*?)\)\s*\{(.*)\}", ptx, re.DOTALL)
    assert found is not None
    parameters = [parameter.split()[-1] for parameter in found.group(1).split(",")]
    body = re.sub(r"(\w+:)", r"\1;", found.group(2)).split(";")
    return parameters, [line.strip() for line in body if line.strip() and not line.strip().startswith(".reg")]


def _split(line: str) -> tuple[str | None, str, list[str]]:
    guard = None
    if line.startswith("@"):
        guard, line = line[1:].split(None, 1)
    code, _, rest = line.partition(" ")
    return guard, code, [operand.strip(" {}") for operand in rest.split(",")] if rest else []


def _move(
    registers: dict[str, Words], loads: bool, size: int, operands: list[str], threads: npt.NDArray[np.intp]
) -> None:
    places, names = (operands[-1], operands[:-1]) if loads else (operands[0], operands[1:])
    addresses = registers[places.strip("[]")]
    # Of 16 bytes, as the device wants it.
    assert not (addresses[threads] % np.uint64(size * len(names))).any()
    for thread in threads:
        for number, name in enumerate(names):
            address = int(addresses[thread]) + number * size
            if loads:
                registers.setdefault(name, np.zeros(len(addresses), np.uint64))
                registers[name][thread] = int.from_bytes(ctypes.string_at(address, size), "little")
            else:
                ctypes.memmove(address, int(registers[name][thread]).to_bytes(size, "little"), size)

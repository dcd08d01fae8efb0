"""Copies within a device by a kernel of our own, which compiled code launches straight through the driver.

The kernel is text in NVIDIA's intermediate language ("PTX ISA"), which the driver translates for its device in some
milliseconds when the first value of a device is recorded in compiled code, so that neither a compiler nor Triton is
needed for it. Where the setting ``direct_launch`` is on it copies in place of ``cudaMemcpyAsync``. That takes 5 to 7 µs
of the calling thread where calls follow one another, and 10 to 15 µs between the kernels of a model; a launch takes 2.5
to 4 µs, and between kernels it goes the way through the driver that the model has just gone. No card has run it.
"""

from __future__ import annotations

import threading

from dumper.log_once import log
from dumper.memory.cuda_runtime import CudaRuntime
from dumper.values.direct_launch import DirectLaunch
from dumper.values.memory_rows import MemoryRows

PIECE = 16
"""Bytes that a thread copies, and that addresses, and rows of more than one, are multiples of."""
THREADS = 256
"""Of a block."""
KERNEL = "tensortap_copy"
PTX = f"""
.version 7.0
.target sm_70
.address_size 64

.visible .entry {KERNEL}(
    .param .u64 source,
    .param .u64 out,
    .param .u64 pieces,
    .param .u64 width,
    .param .u64 pitch,
    .param .u64 tail
)
{{
    .reg .pred %behind;
    .reg .u32 %piece, %block, %threads, %a, %b, %c, %d;
    .reg .u64 %from, %to, %number, %pieces, %width, %pitch, %tail, %row, %column;

    ld.param.u64 %from, [source];
    ld.param.u64 %to, [out];
    ld.param.u64 %pieces, [pieces];
    cvta.to.global.u64 %from, %from;
    cvta.to.global.u64 %to, %to;
    mov.u32 %piece, %tid.x;
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mad.lo.u32 %piece, %block, %threads, %piece;
    cvt.u64.u32 %number, %piece;
    setp.ge.u64 %behind, %number, %pieces;
    @%behind bra BYTES;
    ld.param.u64 %width, [width];
    ld.param.u64 %pitch, [pitch];
    cvt.u32.u64 %a, %width;
    div.u32 %b, %piece, %a;
    cvt.u64.u32 %row, %b;
    mul.lo.u64 %column, %row, %width;
    sub.u64 %column, %number, %column;
    mad.lo.u64 %from, %row, %pitch, %from;
    mad.lo.u64 %from, %column, {PIECE}, %from;
    mad.lo.u64 %to, %number, {PIECE}, %to;
    ld.global.v4.u32 {{%a, %b, %c, %d}}, [%from];
    st.global.v4.u32 [%to], {{%a, %b, %c, %d}};
    ret;
BYTES:
    ld.param.u64 %tail, [tail];
    sub.u64 %number, %number, %pieces;
    setp.ge.u64 %behind, %number, %tail;
    @%behind bra END;
    mad.lo.u64 %number, %pieces, {PIECE}, %number;
    add.u64 %from, %from, %number;
    add.u64 %to, %to, %number;
    ld.global.u8 %a, [%from];
    st.global.u8 [%to], %a;
END:
    ret;
}}
"""
"""Copies ``pieces`` pieces, as rows of ``width`` that begin ``pitch`` bytes from each other, to one behind the other,
and then ``tail`` bytes that follow on a single row."""


class CopyKernels:
    """The kernel on each device of this process."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime
        self._functions: dict[int, int] = {}
        """By device; 0 where it cannot be loaded."""
        self._lock = threading.Lock()

    def direct(self, device: int, nbytes: int, rows: MemoryRows | None) -> DirectLaunch | None:
        """What copies ``nbytes`` bytes, or ``rows``, from an address to another, both multiples of PIECE; None where
        ``cudaMemcpyAsync`` is to do it. Outside of captures."""
        width, height, pitch = (nbytes, 1, 0) if rows is None else (rows.width, rows.height, rows.pitch)
        total = width * height
        if not total or (height > 1 and (width % PIECE or pitch % PIECE)):
            return None
        function = self._functions.get(device)
        if function is None:
            function = self._load(device)
        if not function:
            return None
        pieces, tail = divmod(total, PIECE)
        programs = -(-(pieces + tail) // THREADS)
        return DirectLaunch(function, programs, THREADS, 0, (0, 0, pieces, max(1, width // PIECE), pitch, tail), 0, 1)

    def _load(self, device: int) -> int:
        with self._lock:
            if device not in self._functions:
                try:
                    self._functions[device] = self._runtime.load_kernel(device, PTX, KERNEL)
                except Exception as error:
                    log().info("tensortap: values are copied by cudaMemcpyAsync: %s", error)
                    self._functions[device] = 0
            return self._functions[device]

"""What compiled loops that run for real are made of: raw system calls, atomics, accesses.

Nothing here allocates, needs a C compiler, or uses thread-local storage: a system call is
the instruction itself and returns ``-errno``, so threads that the loop clones by itself
need none.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from mmreplay.jit import borrowing_helper, c_callback
from mmreplay.schema import PAGE_SIZE

binding.initialize_native_asmparser()  # some of the below is written in assembler

_I64: Final = ir.IntType(64)
_I32: Final = ir.IntType(32)

#: glibc's and musl's clone(fn, stack, flags, argument, parent tid, tls, child tid).
clone = types.ExternalFunction("clone", types.int64(*[types.int64] * 7))
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int64, types.int64))


def _pointer(builder: Any, address: Any, kind: Any = _I64) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


#: Called and returned from, below the red zone, as a C library's wrapper is.
_CALLED: Final = """
    leaq -128(%rsp), %rsp
    call 1f
    leaq 128(%rsp), %rsp
    jmp 2f
    .p2align 4
1:  syscall
    ret
2:
"""


@intrinsic
def call(typingctx: Any, n: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """System call ``n``; its result, or ``-errno`` (System V ABI, AMD64 supplement, A.2.1)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64] * 7)
        where = "={rax},{rax},{rdi},{rsi},{rdx},{r10},{r8},{r9},~{rcx},~{r11},~{cc},~{memory}"
        return builder.asm(kind, _CALLED, where, list(args), True)

    return types.int64(*[types.int64] * 7), codegen


@intrinsic
def load(typingctx: Any, address: Any) -> Any:
    """The int64 at ``address``, acquired."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0]), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def load32(typingctx: Any, address: Any) -> Any:
    """The int32 at ``address``, acquired."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.load_atomic(_pointer(builder, args[0], _I32), "acquire", 4)
        return builder.sext(word, _I64)

    return types.int64(types.int64), codegen


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Store an int64, released."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _pointer(builder, args[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def fetch_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Sequentially consistent fetch-add on the int64 at ``address``; the value before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


def _access(instruction: str) -> Any:
    """An access of exactly two bytes of machine code.

    Returns 0, or 1 where :data:`note_failure` had to step over it.
    """

    def define(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(_I64, [_I64, _I64])
            zero = ir.Constant(_I64, 0)
            where = "={rax},{rax},{rdi},~{rcx},~{memory}"
            return builder.asm(kind, instruction, where, [zero, args[0]], True)

        return types.int64(types.int64), codegen

    return intrinsic(define)


write_byte = _access("movb %al, (%rdi)")  # 88 07; a zero
read_byte = _access("movb (%rdi), %cl")  # 8a 0f


@intrinsic
def _count_down(typingctx: Any, count: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64])
        # A chain of multiplications: one round is what one takes (three cycles on today's cores).
        # The countdown alone takes one or two cycles as the core's other hardware thread is idle
        # or not (Zen 4: a taken branch each cycle, or every other), and think time with it.
        body = ".p2align 6\n1: imulq %rcx, %rcx\ndecq %rax\njnz 1b"
        return builder.asm(kind, body, "={rax},{rax},~{rcx},~{cc}", [args[0]], True)

    return types.int64(types.int64), codegen


@borrowing_helper
def spin(rounds: Any) -> None:
    """Compute for ``rounds`` rounds of a loop of three instructions that stays on its core."""
    if rounds > 0:
        _count_down(rounds)


@intrinsic
def table(typingctx: Any, address: Any, rows: Any, columns: Any) -> Any:
    """The (rows, columns) int64 array at ``address``; nobody owns it."""
    kind = types.Array(types.int64, 2, "C")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = arrayobj.make_array(kind)(context, builder)
        itemsize = ir.Constant(_I64, 8)
        strides = [builder.mul(args[2], itemsize), itemsize]
        arrayobj.populate_array(
            array,
            data=_pointer(builder, args[0]),
            shape=[args[1], args[2]],
            strides=strides,
            itemsize=itemsize,
            meminfo=None,
        )
        return array._getvalue()

    return kind(types.int64, types.int64, types.int64), codegen


@borrowing_helper
def now_ns(scratch: Any) -> Any:
    """CLOCK_MONOTONIC by the vDSO; ``scratch``: address of two words."""
    _clock_gettime(1, scratch)
    return load(scratch) * 1_000_000_000 + load(scratch + 8)


@borrowing_helper
def read_pages(first: Any, end: Any) -> None:
    """Read a byte of each page of a range."""
    page = first
    while page < end:
        read_byte(page)
        page += PAGE_SIZE


# Offsets in ucontext_t (arch/x86/include/uapi/asm/sigcontext.h, x86-64).
_RAX: Final = 144
_RIP: Final = 168
_SA_SIGINFO, _SA_RESTART, _SA_NODEFER = 4, 0x10000000, 0x40000000
_SIGBUS, _SIGSEGV = 7, 11
_EXIT_GROUP: Final = 231
_WRITE_BYTE, _READ_BYTE = 0x0788, 0x0F8A  # little-endian


@c_callback(types.void(types.int32, types.int64, types.int64))
def note_failure(signal: Any, info: Any, context: Any) -> None:
    """A handler of SIGSEGV and SIGBUS: go on after the access, which returns 1.

    Anything else that fails is a bug and ends the process.
    """
    instruction = load32(load(context + _RIP)) & 0xFFFF
    if instruction != _WRITE_BYTE and instruction != _READ_BYTE:
        call(_EXIT_GROUP, 128 + signal, 0, 0, 0, 0, 0)
    store(context + _RAX, 1)
    store(context + _RIP, load(context + _RIP) + 2)


class _SigAction(ctypes.Structure):
    """struct sigaction as glibc has it on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def survive_failures() -> None:
    """From here on an access that fails is counted, not fatal."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _SA_SIGINFO | _SA_RESTART | _SA_NODEFER
    action = _SigAction(handler=note_failure.address, flags=flags)
    for number in (_SIGBUS, _SIGSEGV):
        if libc.sigaction(number, ctypes.byref(action), None):
            raise OSError(ctypes.get_errno(), "sigaction")

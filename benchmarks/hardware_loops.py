"""Loops that run without the GIL: memory touches, atomics, raw system calls, timestamps.

System calls go through libc's ``syscall(2)``; its cost (about 5 ns) is part of every
figure.  Nothing here needs a C compiler.
"""

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LIBC = ctypes.CDLL(None, use_errno=False)
_syscall = LIBC.syscall
_syscall.argtypes = [ctypes.c_long] * 7
_syscall.restype = ctypes.c_long
_clock = LIBC.clock_gettime
_clock.argtypes = [ctypes.c_long, ctypes.c_size_t]
_clock.restype = ctypes.c_int

# x86-64 numbers (arch/x86/entry/syscalls/syscall_64.tbl)
READ, MMAP, MPROTECT, MUNMAP, BRK, YIELD, MREMAP, MADVISE, GETPPID = (
    0,
    9,
    10,
    11,
    12,
    24,
    25,
    28,
    110,
)
MLOCK, MUNLOCK, FUTEX, VM_READV = 149, 150, 202, 310
RW, R, PRIVATE_ANON, SHARED_ANON = 3, 1, 0x22, 0x21
DONTNEED, HUGEPAGE, NOHUGEPAGE, RANDOM, POPULATE = 4, 14, 15, 1, 23
WAIT_PRIVATE, WAKE_PRIVATE = 128, 129


def _cast(builder, address):
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def atomic_add(typingctx, address, value):
    """Sequentially consistent fetch-add on the int64 at ``address``."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _cast(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load(typingctx, address):
    """Atomic load of the int64 at ``address``."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_cast(builder, args[0]), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store(typingctx, address, value):
    """Atomic store to the int64 at ``address``."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], _cast(builder, args[0]), "release", 8)
        return cgutils.get_null_value(ir.IntType(64))

    return types.int64(types.int64, types.int64), codegen


@njit(nogil=True)
def now(scratch):
    """CLOCK_MONOTONIC in ns; ``scratch`` is an int64[2]."""
    _clock(1, scratch.ctypes.data)
    return scratch[0] * 1_000_000_000 + scratch[1]


@njit(nogil=True)
def store_flag(address):
    """Set a flag of a control block."""
    store(address, 1)


@njit(nogil=True)
def call(n, a=0, b=0, c=0, d=0, e=0, f=0):
    return _syscall(n, a, b, c, d, e, f)


@njit(nogil=True)
def mmap(length, prot=3, flags=0x22):
    return _syscall(MMAP, 0, length, prot, flags, -1, 0)


# -- what the threads of the contention table do, one operation each ------------------------

TOUCH, FILL, MAP, SPIN, READ_IN, MAP_TOUCH = 0, 1, 2, 3, 4, 5


@njit(nogil=True)
def work(kind, control, base, pages, fd):
    """Do operations of ``kind`` until control says stop.

    control: address of int64[16]: [0] start, [8] stop.  Returns (operations, ns).
    Faulters walk ``pages`` fresh pages from ``base`` and stop early at the end.
    """
    scratch = np.zeros(2, np.int64)
    n = 0
    while load(control) == 0:
        pass
    begin = now(scratch)
    end = begin
    while True:
        if (n & 15) == 0 or kind == MAP:
            if load(control + 64) != 0:
                break
        if kind == TOUCH:
            if n == pages:
                break
            store(base + n * 4096, 1)
        elif kind == FILL:
            if n == pages:
                break
            _syscall(MADVISE, base + n * 4096, 4096, POPULATE, 0, 0, 0)
        elif kind == MAP:
            a = _syscall(MMAP, 0, 65536, R, PRIVATE_ANON, -1, 0)
            _syscall(MUNMAP, a, 65536, 0, 0, 0, 0)
        elif kind == READ_IN:
            if n == pages:
                break
            _syscall(READ, fd, base + n * 4096, 1, 0, 0, 0)
        n += 1
    end = now(scratch)
    return n, end - begin


# -- single costs: each returns ns over all repetitions ----------------------------------------


@njit(nogil=True)
def syscalls(n):
    s = np.zeros(2, np.int64)
    t = now(s)
    for _ in range(n):
        _syscall(GETPPID, 0, 0, 0, 0, 0, 0)
    return now(s) - t


@njit(nogil=True)
def touch(base, pages, step):
    """Write one word into every ``step`` bytes, ``pages`` times."""
    s = np.zeros(2, np.int64)
    t = now(s)
    for i in range(pages):
        store(base + i * step, 1)
    return now(s) - t


@njit(nogil=True)
def peek(base, pages, step):
    s = np.zeros(2, np.int64)
    x = 0
    t = now(s)
    for i in range(pages):
        x += load(base + i * step)
    return now(s) - t + (x & 0)


@njit(nogil=True)
def per_page(number, base, pages, third):
    """One system call per page: number(page, 4096, third)."""
    s = np.zeros(2, np.int64)
    t = now(s)
    for i in range(pages):
        _syscall(number, base + i * 4096, 4096, third, 0, 0, 0)
    return now(s) - t


@njit(nogil=True)
def one_call(number, a, b, c, d, e):
    s = np.zeros(2, np.int64)
    t = now(s)
    r = _syscall(number, a, b, c, d, e, 0)
    return now(s) - t, r


@njit(nogil=True)
def map_pairs(n, length):
    s = np.zeros(2, np.int64)
    t = now(s)
    for _ in range(n):
        a = _syscall(MMAP, 0, length, R, PRIVATE_ANON, -1, 0)
        _syscall(MUNMAP, a, length, 0, 0, 0, 0)
    return now(s) - t


@njit(nogil=True)
def map_touch_pairs(n, pages):
    """mmap, touch all pages, munmap: (ns of mmap, of touching, of munmap)."""
    s = np.zeros(2, np.int64)
    a_ns = b_ns = c_ns = 0
    for _ in range(n):
        t0 = now(s)
        a = _syscall(MMAP, 0, pages * 4096, RW, PRIVATE_ANON, -1, 0)
        t1 = now(s)
        for i in range(pages):
            store(a + i * 4096, 1)
        t2 = now(s)
        _syscall(MUNMAP, a, pages * 4096, 0, 0, 0, 0)
        t3 = now(s)
        a_ns += t1 - t0
        b_ns += t2 - t1
        c_ns += t3 - t2
    return a_ns, b_ns, c_ns


@njit(nogil=True)
def toggles(n, base, length, touched):
    """mprotect to read-only and back, n times."""
    s = np.zeros(2, np.int64)
    t = now(s)
    for _ in range(n):
        _syscall(MPROTECT, base, length, R, 0, 0, 0)
        _syscall(MPROTECT, base, length, RW, 0, 0, 0)
    return now(s) - t


@njit(nogil=True)
def zaps(n, base, pages):
    """Touch ``pages`` pages, then DONTNEED them: ns of the DONTNEEDs only."""
    s = np.zeros(2, np.int64)
    total = 0
    for _ in range(n):
        for i in range(pages):
            store(base + i * 4096, 1)
        t = now(s)
        _syscall(MADVISE, base, max(pages, 1) * 4096, DONTNEED, 0, 0, 0)
        total += now(s) - t
    return total


@njit(nogil=True)
def zaps_after(control, n, base, pages):
    """As :func:`zaps`, from the start flag on."""
    while load(control) == 0:
        pass
    return zaps(n, base, pages)


@njit(nogil=True)
def breaks(n, pages):
    s = np.zeros(2, np.int64)
    top = _syscall(BRK, 0, 0, 0, 0, 0, 0)
    t = now(s)
    for _ in range(n):
        _syscall(BRK, top + pages * 4096, 0, 0, 0, 0, 0)
        _syscall(BRK, top, 0, 0, 0, 0, 0)
    return now(s) - t


@njit(nogil=True)
def atomics(address, n):
    s = np.zeros(2, np.int64)
    t = now(s)
    for _ in range(n):
        atomic_add(address, 1)
    return now(s) - t


@njit(nogil=True)
def ping(address, parity, rounds):
    """Hand a counter to and fro: wait until it has my parity, then move it on."""
    s = np.zeros(2, np.int64)
    t = now(s)
    while True:
        x = load(address)
        if x >= rounds:
            break
        if (x & 1) == parity:
            atomic_add(address, 1)
    return now(s) - t


@njit(nogil=True)
def spin_count(control, window_ns):
    """Iterations of an empty loop in a window, from the start flag on; then sets stop."""
    s = np.zeros(2, np.int64)
    while load(control) == 0:
        pass
    n = 0
    t = now(s)
    while now(s) - t < window_ns:
        n += 1
    return n


@njit(nogil=True)
def sleeper(control, n, out):
    """Sleep on a futex n times; out[k] = time of waking.

    control: [0] futex word (the round), [8] rounds slept, for the waker to see.
    """
    s = np.zeros(2, np.int64)
    for k in range(n):
        store(control + 64, k + 1)
        while (load(control) & 0xFFFFFFFF) == k:
            _syscall(FUTEX, control, WAIT_PRIVATE, k, 0, 0, 0)
        out[k] = now(s)
    return 0


@njit(nogil=True)
def waker(control, n, pause_ns, begin, end):
    """Wake the sleeper n times, ``pause_ns`` after it announced its sleep."""
    s = np.zeros(2, np.int64)
    for k in range(n):
        while load(control + 64) != k + 1:
            pass
        t = now(s)
        while now(s) - t < pause_ns:
            pass
        begin[k] = now(s)
        store(control, k + 1)
        _syscall(FUTEX, control, WAKE_PRIVATE, 1, 0, 0, 0)
        end[k] = now(s)
    return 0


@njit(nogil=True)
def yields(control, n):
    """sched_yield n times after the start flag; ns."""
    s = np.zeros(2, np.int64)
    while load(control) == 0:
        _syscall(YIELD, 0, 0, 0, 0, 0, 0)
    t = now(s)
    for _ in range(n):
        _syscall(YIELD, 0, 0, 0, 0, 0, 0)
    return now(s) - t


@njit(nogil=True)
def futex_pingpong(address, parity, rounds):
    """Hand a futex word to and fro with real sleeps; ns for all rounds."""
    s = np.zeros(2, np.int64)
    t = now(s)
    while True:
        x = load(address)
        if x >= rounds:
            break
        if (x & 1) == parity:
            store(address, x + 1)
            _syscall(FUTEX, address, WAKE_PRIVATE, 1, 0, 0, 0)
        else:
            _syscall(FUTEX, address, WAIT_PRIVATE, x & 0xFFFFFFFF, 0, 0, 0)
    return now(s) - t

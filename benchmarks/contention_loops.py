"""Loops of benchmarks/measure_contention.py: a thread that holds mmap_lock for long, and one
that times single operations beside it.  Both run without the GIL."""

from __future__ import annotations

import numpy as np
from numba import njit

from hardware_loops import (
    DONTNEED,
    FUTEX,
    MADVISE,
    MMAP,
    MPROTECT,
    MUNMAP,
    POPULATE,
    PRIVATE_ANON,
    READ,
    RW,
    VM_READV,
    WAKE_PRIVATE,
    R,
    _syscall,
    load,
    now,
    store,
)

LSEEK = 8
PAGE = 4096

#: What is timed.
(
    FAULT,
    ZERO_PAGE,
    FIRST_WRITE,
    READ_FRESH,
    READ_RESIDENT,
    DONTNEED_ONE,
    DONTNEED_TWO,
    FILL,
    VM_READ,
    PAIR,
    PROC_READ,
    WAKE,
) = range(12)
#: What holds the lock.
PROTECT, FILL_ALL = 0, 1


@njit(nogil=True)
def hold(kind, control, base, length, out):
    """Hold mmap_lock over and over until told to stop; out[k] = ns of the k-th call.

    PROTECT: mprotect to read-only and back (for writing).  FILL_ALL: DONTNEED, then
    POPULATE_WRITE of everything (for reading; the populate is timed).
    """
    scratch = np.zeros(2, np.int64)
    while load(control) == 0:
        pass
    n = 0
    while load(control + 64) == 0:
        if kind == PROTECT:
            t = now(scratch)
            _syscall(MPROTECT, base, length, R if n % 2 == 0 else RW, 0, 0, 0)
        else:
            _syscall(MADVISE, base, length, DONTNEED, 0, 0, 0)
            t = now(scratch)
            _syscall(MADVISE, base, length, POPULATE, 0, 0, 0)
        out[n % len(out)] = now(scratch) - t
        n += 1
    if kind == PROTECT:
        _syscall(MPROTECT, base, length, RW, 0, 0, 0)
    return n


@njit(nogil=True)
def probe(kind, control, base, step, fd, vector, limit_ns, pauses, warm, out, first):
    """Time operations of ``kind`` from the start flag on; returns how many.

    Stops after ``len(out)`` operations or ``limit_ns``.  ``base + i * step`` is where the
    i-th operation works; ``pauses[i]`` ns are spun away before it.  ``vector``: address
    of two struct iovec.  ``warm``: fresh pages, of which each operation uses up three
    beforehand (0: none).  ``first[i]``: of a pair, the mmap alone.
    """
    scratch = np.zeros(2, np.int64)
    while load(control) == 0:
        pass
    begin = now(scratch)
    n = 0
    sink = 0
    while n < len(out):
        t = now(scratch)
        if t - begin > limit_ns:
            break
        wait = pauses[n]
        while wait > 0 and now(scratch) - t < wait:
            pass
        if warm != 0:
            store(warm + 3 * n * PAGE, 1)
            store(warm + (3 * n + 1) * PAGE, 1)
            _syscall(MADVISE, warm + (3 * n + 2) * PAGE, PAGE, DONTNEED, 0, 0, 0)
            if kind == PROC_READ:
                _syscall(LSEEK, fd, 0, 0, 0, 0, 0)
                _syscall(READ, fd, base, 65536, 0, 0, 0)
        at = base + n * step
        if kind == DONTNEED_ONE:
            store(at, 1)
        elif kind == VM_READ:
            store(vector + 16, at)
        t = now(scratch)
        if kind == FAULT or kind == FIRST_WRITE:
            store(at, 1)
        elif kind == ZERO_PAGE:
            sink += load(at)
        elif kind == READ_FRESH or kind == READ_RESIDENT:
            _syscall(READ, fd, at, 1, 0, 0, 0)
        elif kind == DONTNEED_ONE:
            _syscall(MADVISE, at, PAGE, DONTNEED, 0, 0, 0)
        elif kind == DONTNEED_TWO:
            _syscall(MADVISE, at, 2 * PAGE, DONTNEED, 0, 0, 0)
        elif kind == FILL:
            _syscall(MADVISE, at, PAGE, POPULATE, 0, 0, 0)
        elif kind == VM_READ:
            _syscall(VM_READV, fd, vector, 1, vector + 16, 1, 0)
        elif kind == PAIR:
            a = _syscall(MMAP, 0, 65536, R, PRIVATE_ANON, -1, 0)
            first[n] = now(scratch) - t
            _syscall(MUNMAP, a, 65536, 0, 0, 0, 0)
        elif kind == PROC_READ:
            _syscall(LSEEK, fd, 0, 0, 0, 0, 0)
            _syscall(READ, fd, base, 65536, 0, 0, 0)
        elif kind == WAKE:
            _syscall(FUTEX, base, WAKE_PRIVATE, 1, 0, 0, 0)
        out[n] = now(scratch) - t
        n += 1
    return n + (sink & 0)

"""The program that calibration records: page faults, then mmap and munmap, timed by themselves.

    python loops.py FAULT_ROUNDS PAIR_ROUNDS

Prints one JSON object: the least CPU time of a round, in ns per fault and ns per mmap+munmap pair
(null without rounds).  It imports nothing but the standard library, to start fast.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
import time

PAGES = 4096
PAIRS = 2000
_PROT = 3  # PROT_READ | PROT_WRITE
_FLAGS = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS: include/uapi/asm-generic/mman-common.h@6.18


def faults(rounds: int) -> float | None:
    """ns per first write to a page; one C call writes them all."""
    best = None
    for _ in range(rounds):
        area = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            area.madvise(mmap.MADV_NOHUGEPAGE)
        here = ctypes.c_char.from_buffer(area)
        address = ctypes.addressof(here)
        begin = time.thread_time_ns()
        ctypes.memset(address, 1, PAGES * mmap.PAGESIZE)
        spent = (time.thread_time_ns() - begin) / PAGES
        best = spent if best is None else min(best, spent)
        del here
        area.close()
    return best


def pairs(rounds: int) -> float | None:
    """ns per mmap and munmap of one page that is never touched."""
    libc = ctypes.CDLL(None)
    word = ctypes.c_size_t
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, word]
    libc.munmap.argtypes = [ctypes.c_void_p, word]
    size = mmap.PAGESIZE
    best = None
    for _ in range(rounds):
        begin = time.thread_time_ns()
        for _ in range(PAIRS):
            libc.munmap(libc.mmap(None, size, _PROT, _FLAGS, -1, 0), size)
        spent = (time.thread_time_ns() - begin) / PAIRS
        best = spent if best is None else min(best, spent)
    return best


if __name__ == "__main__":
    print(json.dumps({"fault_ns": faults(int(sys.argv[1])), "pair_ns": pairs(int(sys.argv[2]))}))

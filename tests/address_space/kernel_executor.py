"""Executes sequences of memory-map calls for real and reports what the kernel made of them.

Runs as its own small process: one JSON list of operations per line on stdin, one JSON answer per
line on stdout.  Each sequence runs in a fresh child, in an arena far from everything else, and
nothing is touched from user mode, so no sequence can crash.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

ARENA = 0x100000000000
PAGE = 4096
PAGES = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_NR = {
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "mremap": 25,
    "madvise": 28,
    "mlock": 149,
    "munlock": 150,
    "mlockall": 151,
    "munlockall": 152,
    "mlock2": 325,
    "mseal": 462,
}


def call(name: str, *args: int) -> int:
    """The return value, or -errno."""
    padded = [ctypes.c_long(a) for a in args] + [ctypes.c_long(0)] * (6 - len(args))
    result = int(_syscall(ctypes.c_long(_NR[name]), *padded))
    return -ctypes.get_errno() if result == -1 else result


def arena() -> list[list[object]]:
    """[start, end, perms, offset, inode, VmFlags] of every VMA of the arena."""
    found: list[list[object]] = []
    inside = False
    with Path("/proc/self/smaps").open() as smaps:
        for line in smaps:
            if line[0].islower() or line[0].isdigit():
                words = line.split()
                start, end = (int(w, 16) for w in words[0].split("-"))
                inside = ARENA <= start < ARENA + PAGES * PAGE
                if inside:
                    found.append([start, end, words[1], int(words[2], 16), int(words[4])])
            elif inside and line.startswith("VmFlags:"):
                found[-1].append(line.split()[1:])
    return found


def touch(address: int, write: bool, zero: int, sink: int) -> int:
    """A fault in kernel mode: EFAULT instead of a signal."""
    if write:
        result = int(_libc.read(zero, ctypes.c_void_p(address), ctypes.c_size_t(1)))
    else:
        result = int(_libc.pwrite(sink, ctypes.c_void_p(address), ctypes.c_size_t(1), 0))
    return 0 if result == 1 else -ctypes.get_errno()


def run(operations: list[list[object]], every: bool) -> list[object]:
    """[result, arena or None] per operation; a fork's answers are its child's."""
    zero = os.open("/dev/zero", os.O_RDONLY)
    sink = os.memfd_create("sink")
    files = [os.memfd_create("a"), os.memfd_create("b")]
    for fd in files:
        os.ftruncate(fd, 1024 * PAGE)
    answers: list[object] = []
    for number, operation in enumerate(operations):
        name, args = str(operation[0]), [int(str(a)) for a in operation[1:]]
        if name == "mmap":
            address, length, prot, flags, file, offset = args
            result = call(
                "mmap", address, length, prot, flags, files[file - 1] if file else -1, offset
            )
        elif name in ("write", "read"):
            result = touch(args[0], name == "write", zero, sink)
        elif name == "fork":  # go on in the child (1) or in the parent (0); the other stays
            ready, done = os.pipe(), os.pipe()
            child = os.fork()
            if bool(child) == bool(args[0]):
                # the one that stays behind, until the other one ends
                os.close(done[1])
                os.read(done[0], 1)
                if child:
                    os.waitpid(child, 0)
                os._exit(0)
            os.close(ready[0])
            result = 0
        else:
            result = call(name, *args)
        last = number == len(operations) - 1
        answers.append([result, arena() if every or last else None])
    return answers


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            answer = json.dumps(run(request["operations"], request["every"]))
            with os.fdopen(write_end, "w") as out:
                out.write(answer)
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as inp:
            text = inp.read()
        os.waitpid(child, 0)
        sys.stdout.write((text or "null") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""A program that does operations which no counts file has, phase by phase.

    python other_operations.py [PHASE ...]

Waits for a line on its standard input; then each phase stands between two madvise calls
whose advice (1000 + number) no kernel knows: EINVAL before any lock, but seen by a recorder.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

PAGE = 4096
N = 20
R, RW = 1, 3
PRIVATE, SHARED = 0x22, 0x21
FIXED, GROWSDOWN, POPULATE, NORESERVE, NONBLOCK = 0x10, 0x100, 0x8000, 0x4000, 0x10000
MMAP, MPROTECT, MUNMAP, BRK, MREMAP, MSYNC, MINCORE, MADVISE = 9, 10, 11, 12, 25, 26, 27, 28
SHMGET, SHMAT, SHMCTL, SHMDT, MLOCK, MUNLOCK, MLOCKALL, MUNLOCKALL = (
    29,
    30,
    31,
    67,
    149,
    150,
    151,
    152,
)
REMAP_FILE_PAGES, MBIND, GET_MEMPOLICY, VM_READV, MLOCK2, PKEY_MPROTECT, MSEAL = (
    216,
    237,
    239,
    310,
    325,
    329,
    462,
)
WILLNEED, DONTNEED, FREE, DONTFORK, DOFORK, NOHUGEPAGE, DONTDUMP = 3, 4, 8, 10, 11, 15, 16
WIPEONFORK, COLD, PAGEOUT, POPULATE_READ, POPULATE_WRITE, COLLAPSE = 18, 20, 21, 22, 23, 25
SEQUENTIAL, REMOVE, GUARD_INSTALL, GUARD_REMOVE = 2, 9, 102, 103

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.syscall.argtypes = [ctypes.c_long] * 7


def call(number: int, *args: int) -> int:
    return int(libc.syscall(number, *args, *[0] * (6 - len(args))))


def new(pages: int, prot: int = RW, flags: int = PRIVATE, at: int = 0, fd: int = -1) -> int:
    return call(MMAP, at, pages * PAGE, prot, flags | (FIXED if at else 0), fd, 0)


def write(address: int) -> None:
    ctypes.c_char.from_address(address).value = b"x"


def read(address: int) -> None:
    ctypes.c_char.from_address(address).value  # noqa: B018


def apart(pages: int, prot: int = RW) -> int:
    """A mapping with a hole on both sides."""
    base = new(pages + 2, 0)
    call(MUNMAP, base, PAGE)
    call(MUNMAP, base + (pages + 1) * PAGE, PAGE)
    call(MPROTECT, base + PAGE, pages * PAGE, prot)
    return base + PAGE


def striped(pages: int) -> int:
    """VMAs of one page each, every second one read-only."""
    base = apart(pages)
    for i in range(0, pages, 2):
        call(MPROTECT, base + i * PAGE, PAGE, R)
    return base


def mremap_moves() -> None:
    for _ in range(N):
        base = new(4, 0)
        call(MPROTECT, base, 2 * PAGE, RW)
        write(base)
        moved = call(MREMAP, base, 2 * PAGE, 8 * PAGE, 1)  # in the way: it must move
        write(moved + 7 * PAGE)
        call(MUNMAP, moved, 8 * PAGE)
        call(MUNMAP, base, 4 * PAGE)


def mremap_onto_a_mapping() -> None:
    for _ in range(N):
        old, target = apart(3), striped(4)
        write(old)
        write(target + PAGE)
        call(MREMAP, old, 3 * PAGE, 3 * PAGE, 3, target)
        write(target + 2 * PAGE)
        call(MUNMAP, target, 4 * PAGE)


def mremap_leaves_the_old() -> None:
    for _ in range(N):
        old = apart(3)
        write(old)
        moved = call(MREMAP, old, 3 * PAGE, 3 * PAGE, 5, 0)  # MAYMOVE | DONTUNMAP
        write(moved + PAGE)
        write(old)
        call(MUNMAP, moved, 3 * PAGE)
        call(MUNMAP, old, 3 * PAGE)


def madvise_reads() -> None:
    base = apart(16)
    write(base)
    for _ in range(N):
        write(base + 3 * PAGE)
        for advice in (COLD, PAGEOUT, WILLNEED, POPULATE_READ, POPULATE_WRITE):
            call(MADVISE, base, 8 * PAGE, advice)


def madvise_writes() -> None:
    base = apart(16)
    write(base)
    for _ in range(N):
        for advice in (SEQUENTIAL, 0, NOHUGEPAGE, DONTDUMP, 17, WIPEONFORK, 19, DONTFORK, DOFORK):
            call(MADVISE, base + 4 * PAGE, 4 * PAGE, advice)


def madvise_across_vmas() -> None:
    for _ in range(N):
        base = striped(6)
        write(base + PAGE)
        call(MADVISE, base, 6 * PAGE, DONTNEED)
        call(MADVISE, base + PAGE, PAGE, DONTNEED)
        call(MADVISE, base, 6 * PAGE, POPULATE_READ)
        call(MADVISE, base, 6 * PAGE, FREE)
        call(MUNMAP, base + 2 * PAGE, PAGE)
        call(MADVISE, base, 6 * PAGE, DONTNEED)  # a hole: ENOMEM, after the lock
        call(MUNMAP, base, 6 * PAGE)


def madvise_of_nothing() -> None:
    base = apart(1)
    call(MUNMAP, base, PAGE)
    for _ in range(N):
        call(MADVISE, base, PAGE, DONTNEED)
        call(MADVISE, base, PAGE, COLD)
        call(MADVISE, base, PAGE, DONTFORK)
        call(MADVISE, base + 1, PAGE, DONTNEED)  # EINVAL, before the lock
        call(MADVISE, base, 0, DONTNEED)


def guards() -> None:
    for _ in range(N):
        base = apart(8)
        write(base)
        call(MADVISE, base + 2 * PAGE, PAGE, GUARD_INSTALL)
        call(MADVISE, base + 2 * PAGE, PAGE, GUARD_REMOVE)
        fresh = apart(2)
        call(MADVISE, fresh, PAGE, GUARD_INSTALL)
        call(MLOCK2, fresh, 2 * PAGE, 1)
        call(MADVISE, fresh, PAGE, GUARD_INSTALL)  # EINVAL: of the VMA, after the lock
        call(MUNMAP, base, 8 * PAGE)
        call(MUNMAP, fresh, 2 * PAGE)


def looks_across_vmas() -> None:
    base, shared = striped(6), new(4, flags=SHARED)
    call(MPROTECT, shared + PAGE, PAGE, R)
    vector = ctypes.create_string_buffer(64)
    write(ctypes.addressof(vector))
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8 * PAGE))
        file.flush()
        files = new(8, flags=2, fd=file.fileno())
        call(MPROTECT, files + 3 * PAGE, 2 * PAGE, R)
        for _ in range(N):
            call(MINCORE, base, 6 * PAGE, ctypes.addressof(vector))
            call(MINCORE, base + 3 * PAGE, 4 * PAGE, ctypes.addressof(vector))  # ENOMEM: a hole
            call(MINCORE, base + 6 * PAGE, PAGE, ctypes.addressof(vector))
            call(MSYNC, shared, 4 * PAGE, 4)  # each VMA is written back without the lock
            call(MSYNC, base, 7 * PAGE, 4)
            call(MADVISE, files, 8 * PAGE, WILLNEED)
            call(MADVISE, files + 4 * PAGE, 8 * PAGE, WILLNEED)
        call(MUNMAP, files, 8 * PAGE)
    call(MUNMAP, base, 6 * PAGE)
    call(MUNMAP, shared, 4 * PAGE)


def collapse() -> None:
    huge = 2 << 20
    for _ in range(4):
        base = new(2 * huge // PAGE)
        start = -(-base // huge) * huge
        write(start)
        call(MADVISE, start, huge, COLLAPSE)
        call(MUNMAP, base, 2 * huge)


def fixed_over_several() -> None:
    for _ in range(N):
        base = striped(8)
        write(base + PAGE)
        new(6, at=base + PAGE)
        write(base + 2 * PAGE)
        call(MUNMAP, base, 8 * PAGE)


def munmap_of_several() -> None:
    for _ in range(N):
        base = striped(8)
        write(base + PAGE)
        call(MUNMAP, base + 3 * PAGE, PAGE)
        call(MUNMAP, base + PAGE, 5 * PAGE)
        call(MUNMAP, base, 8 * PAGE)
        call(MUNMAP, base, 8 * PAGE)  # nothing there any more


def mprotect_of_several() -> None:
    for _ in range(N):
        base = striped(8)
        call(MPROTECT, base + PAGE, 6 * PAGE, R)
        call(MPROTECT, base, 8 * PAGE, RW)
        write(base)
        call(MPROTECT, base, 12 * PAGE, R)  # ends in a hole: ENOMEM, after the lock
        call(MUNMAP, base, 8 * PAGE)


def locked_memory() -> None:
    for _ in range(N):
        base = apart(8)
        call(MLOCK2, base + 2 * PAGE, 2 * PAGE, 1)  # ON_FAULT
        write(base + 2 * PAGE)
        call(MLOCK, base, 8 * PAGE)
        call(MUNLOCK, base + PAGE, 2 * PAGE)
        call(MUNLOCK, base, 8 * PAGE)
        call(MUNMAP, base, 8 * PAGE)


def lock_all() -> None:
    for _ in range(4):
        call(MLOCKALL, 1 | 4)  # CURRENT | ONFAULT
        call(MUNLOCKALL)
        call(MLOCKALL, 2)  # FUTURE
        base = new(4)
        call(MUNLOCKALL)
        call(MUNMAP, base, 4 * PAGE)


def looks() -> None:
    base = apart(8)
    write(base)
    vector = ctypes.create_string_buffer(64)
    write(ctypes.addressof(vector))
    for _ in range(N):
        call(MINCORE, base, 8 * PAGE, ctypes.addressof(vector))
        call(MSYNC, base, 8 * PAGE, 4)
        call(GET_MEMPOLICY, ctypes.addressof(vector), 0, 0, base, 3)


def policy() -> None:
    base = apart(8)
    nodes = ctypes.c_ulong(1)
    for _ in range(N):
        call(MBIND, base + PAGE, PAGE, 1, ctypes.addressof(nodes), 64)
        call(MBIND, base + PAGE, PAGE, 0)


def shared_segments() -> None:
    segment = call(SHMGET, 0, 4 * PAGE, 0o1600)
    for _ in range(N):
        at = call(SHMAT, segment, 0, 0)
        write(at)
        read(at + PAGE)
        call(SHMDT, at)
    call(SHMCTL, segment, 0, 0)


def fork_tree() -> None:
    base = apart(4)
    for i in range(4):
        write(base + i * PAGE)
    for _ in range(3):
        child = os.fork()
        if not child:
            write(base)
            grandchild = os.fork()
            if not grandchild:
                write(base + PAGE)
                os._exit(0)
            os.waitpid(grandchild, 0)
            os._exit(0)
        os.waitpid(child, 0)
        write(base + 2 * PAGE)


def other_programs() -> None:
    for _ in range(3):
        subprocess.run(["/bin/true"], check=True)


def growing_stack() -> None:
    for _ in range(N):
        room = new(300, 0)
        call(MUNMAP, room, 300 * PAGE)
        top = new(2, flags=PRIVATE | GROWSDOWN, at=room + 298 * PAGE)
        write(top)
        write(top - PAGE)
        write(top - 5 * PAGE)
        read(top - 6 * PAGE)
        call(MUNMAP, top - 6 * PAGE, 8 * PAGE)


def stuck_stacks() -> None:
    zero = os.open("/dev/zero", os.O_RDONLY)
    room = new(300, 0)
    call(MUNMAP, room, 298 * PAGE)
    for _ in range(N):
        top = new(2, flags=PRIVATE | GROWSDOWN, at=room + 298 * PAGE)
        new(1, at=top - 20 * PAGE)  # in its guard gap
        call(0, zero, top - PAGE, 1)  # EFAULT
        call(MUNMAP, top - 20 * PAGE, PAGE)
    os.close(zero)


def refused_under_the_lock() -> None:
    base, sealed = apart(4), apart(4)
    call(MSEAL, sealed, 4 * PAGE, 0)
    call(MPROTECT, base + 2 * PAGE, 2 * PAGE, R)
    for _ in range(N):
        call(PKEY_MPROTECT, base, PAGE, R, 5)  # EINVAL: nobody has allocated the key
        call(PKEY_MPROTECT, base, PAGE, 64, 5)  # EINVAL, before the lock
        call(MPROTECT, base, PAGE, 64)  # EINVAL, before the lock
        call(MADVISE, base, 4 * PAGE, POPULATE_WRITE)  # EINVAL: read-only from the third page on
        call(MADVISE, base, 4 * PAGE, COLLAPSE)
        call(REMAP_FILE_PAGES, base, PAGE, 0, 0, 0)  # EINVAL: not shared
        call(REMAP_FILE_PAGES, base, PAGE, R, 0, 0)  # EINVAL, before the lock
        call(MMAP, sealed, PAGE, RW, PRIVATE | FIXED, -1, 0)  # EPERM
        call(MUNLOCK, 1 << 63, 1 << 63)  # EINVAL
        call(MADVISE, base - 2 * PAGE, 3 * PAGE, DONTNEED)  # begins in a hole
        call(MREMAP, base + 2 * PAGE, 8 * PAGE, 2 * PAGE, 0)  # nothing to shrink
    call(MUNMAP, base, 4 * PAGE)


def protection_keys() -> None:
    base = apart(8)
    for _ in range(N):
        call(PKEY_MPROTECT, base + PAGE, PAGE, R, -1)
        call(PKEY_MPROTECT, base + PAGE, PAGE, RW, -1)


def remote() -> None:
    base = apart(40)
    for i in range(40):
        write(base + i * PAGE)
    vector = (ctypes.c_size_t * 4)(base, 8, base + 3 * PAGE, 8)
    at = ctypes.addressof(vector)
    for _ in range(N):
        call(VM_READV, os.getpid(), at, 1, at + 16, 1, 0)


def file_mappings() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(64 * PAGE))
        file.flush()
        fd = file.fileno()
        for _ in range(N):
            for flags in (2, 1):
                base = new(16, flags=flags, fd=fd)
                read(base)
                write(base + PAGE)
                write(base + 2 * PAGE)
                call(MADVISE, base, 16 * PAGE, DONTNEED)
                read(base + 3 * PAGE)
                call(MADVISE, base, 16 * PAGE, WILLNEED)
                call(MUNMAP, base, 16 * PAGE)
            base = new(16, flags=2 | POPULATE, fd=fd)
            call(MUNMAP, base, 16 * PAGE)


def kernel_writes() -> None:
    zero = os.open("/dev/zero", os.O_RDONLY)
    for _ in range(N):
        base = apart(4)
        call(0, zero, base, 3 * PAGE)  # read(2)
        call(0, zero, base, 3 * PAGE)
        call(MUNMAP, base, 4 * PAGE)
    os.close(zero)


def remapped_file_pages() -> None:
    for _ in range(N):
        base = new(8, flags=SHARED)
        write(base)
        call(REMAP_FILE_PAGES, base, PAGE, 0, 3, 0)
        read(base)
        call(MUNMAP, base, 8 * PAGE)


def sealed() -> None:
    for _ in range(4):
        base = apart(4)
        call(MSEAL, base, 2 * PAGE, 0)
        call(MUNMAP, base, 4 * PAGE)  # EPERM, after the lock
        call(MPROTECT, base, PAGE, R)


def heap() -> None:
    top = call(BRK, 0)
    for _ in range(N):
        call(BRK, top + 8 * PAGE)
        write(top + 5 * PAGE)
        call(BRK, top + 2 * PAGE)
        call(BRK, top)


def threads() -> None:
    base = apart(4 * N)
    for i in range(N):
        thread = threading.Thread(target=write, args=(base + i * PAGE,))
        thread.start()
        thread.join()


def mremap_shrinks_and_copies() -> None:
    for _ in range(N):
        base = apart(8)
        write(base + 6 * PAGE)
        call(MREMAP, base, 8 * PAGE, 2 * PAGE, 0)
        call(MREMAP, base, 2 * PAGE, 4 * PAGE, 0)  # grows again where it is
        write(base + 3 * PAGE)
        call(MUNMAP, base, 4 * PAGE)
        shared = new(2, flags=SHARED)
        write(shared)
        copy = call(MREMAP, shared, 0, 2 * PAGE, 1)  # a second mapping of the same pages
        read(copy)
        call(MUNMAP, shared, 2 * PAGE)
        call(MUNMAP, copy, 2 * PAGE)


def populated() -> None:
    for _ in range(N):
        base = new(8, flags=PRIVATE | POPULATE)
        write(base + 3 * PAGE)
        call(MUNMAP, base, 8 * PAGE)
        base = new(8, 0, flags=PRIVATE | POPULATE)  # nothing may be touched
        call(MUNMAP, base, 8 * PAGE)
        base = new(8, R, flags=PRIVATE | POPULATE | NORESERVE)
        read(base + PAGE)
        call(MUNMAP, base, 8 * PAGE)


def huge_pages() -> None:
    huge = 2 << 20
    base = new(4 * huge // PAGE)
    start = -(-base // huge) * huge
    call(MADVISE, start, 3 * huge, 14)  # HUGEPAGE
    for i in range(3):
        write(start + i * huge)
        write(start + i * huge + 5 * PAGE)
    call(MPROTECT, start + 3 * PAGE, PAGE, R)  # splits the first
    call(MADVISE, start + huge + 7 * PAGE, PAGE, DONTNEED)  # and the second
    write(start + huge + 7 * PAGE)
    call(MUNMAP, base, 4 * huge)


def vector_advice() -> None:
    descriptor = os.pidfd_open(os.getpid())
    base = apart(16)
    for i in range(16):
        write(base + i * PAGE)
    vector = (ctypes.c_size_t * 6)(base, PAGE, base + 4 * PAGE, PAGE, base + 8 * PAGE, 2 * PAGE)
    for _ in range(N):
        call(440, descriptor, ctypes.addressof(vector), 3, COLD, 0)
        call(440, descriptor, ctypes.addressof(vector), 3, PAGEOUT, 0)
    os.close(descriptor)


def removed_pages() -> None:
    base = new(16, flags=SHARED)
    private = apart(2)
    for i in range(N):
        write(base + i % 16 * PAGE)
        call(MADVISE, base, 16 * PAGE, REMOVE)
        call(MADVISE, private, 2 * PAGE, REMOVE)  # EINVAL, after the lock
        call(MADVISE, private, 16 * PAGE, REMOVE)


def calls_on_nothing() -> None:
    base = apart(2)
    seen = ctypes.create_string_buffer(4)
    for _ in range(N):
        for number in (MLOCK, MUNLOCK, MSYNC, MPROTECT, MBIND, MSEAL):
            call(number, base, 0)
        call(MINCORE, base, 0, ctypes.addressof(seen))
        call(MMAP, base, PAGE, RW, PRIVATE | FIXED | POPULATE | NONBLOCK, -1, 0)


def failing_calls() -> None:
    base = apart(2)
    for _ in range(N):
        call(MUNMAP, base + 1, PAGE)  # EINVAL, before the lock
        call(MMAP, 0, 0, RW, PRIVATE, -1, 0)
        call(MMAP, 0, PAGE, RW, 2, 999, 0)  # EBADF
        call(MPROTECT, base + 1, PAGE, R)
        call(MPROTECT, base + 64 * PAGE, PAGE, R)  # ENOMEM, after the lock
        call(MREMAP, base + 64 * PAGE, PAGE, 2 * PAGE, 1)  # EFAULT, after the lock
        call(MREMAP, base, PAGE, 2 * PAGE, 0)  # fits: grows? no: a page of its own is behind
        call(MLOCK, base + 64 * PAGE, PAGE)  # ENOMEM, after the lock


PHASES: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (
        mremap_moves,
        mremap_onto_a_mapping,
        mremap_leaves_the_old,
        madvise_reads,
        madvise_writes,
        madvise_across_vmas,
        madvise_of_nothing,
        guards,
        looks_across_vmas,
        collapse,
        fixed_over_several,
        munmap_of_several,
        mprotect_of_several,
        locked_memory,
        lock_all,
        looks,
        policy,
        shared_segments,
        fork_tree,
        other_programs,
        growing_stack,
        stuck_stacks,
        refused_under_the_lock,
        protection_keys,
        remote,
        file_mappings,
        kernel_writes,
        remapped_file_pages,
        sealed,
        heap,
        threads,
        mremap_shrinks_and_copies,
        populated,
        huge_pages,
        vector_advice,
        removed_pages,
        calls_on_nothing,
        failing_calls,
    )
}


def main() -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    for number, (name, phase) in enumerate(PHASES.items()):
        if not sys.argv[1:] or name in sys.argv[1:]:
            call(MADVISE, 0, PAGE, 1000 + 2 * number)
            phase()
            call(MADVISE, 0, PAGE, 1001 + 2 * number)
    print("done", flush=True)
    sys.stdin.readline()
    assert mmap.PAGESIZE == PAGE


if __name__ == "__main__":
    main()

"""The compiled loop that performs a program's actions for real.

It needs no C compiler, allocates nothing and calls into nothing but libc's ``syscall``
and ``clone``, so that between two actions the process does nothing to its own memory
map.  Everything it reads and writes lies in one shared mapping (:class:`Header`), which
children see too.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from mmreplay.hardware.primitives import load, load32, store
from mmreplay.jit import c_callback, njit

binding.initialize_native_asmparser()  # the accesses below are written in assembler


class Column(IntEnum):
    """What an action consists of; each is an int64."""

    ACTION = 0
    CONTEXT = 1  # which thread or process performs it
    NUMBER = 2  # system call; the new context of FORK, THREAD and VFORK
    A = 3
    B = 4
    C = 5
    D = 6
    E = 7
    F = 8
    RESULT = 9  # what the call returned, or -errno


COLUMNS: Final = len(Column)
ROW: Final = COLUMNS * 8


class Action(IntEnum):
    """What the loop can do."""

    SYSCALL = 0
    STORE = 1  # one byte at A, from user mode
    LOAD = 2
    FORK = 3
    THREAD = 4  # A: top of its stack
    VFORK = 5  # A: top of the child's stack
    EXIT_PROCESS = 6
    EXIT_THREAD = 7
    EXEC = 8  # A path, B argv, C envp
    WAIT_PROCESS = 9  # A: the action that made it
    WAIT_THREAD = 10  # A: the action that made it
    READ_ALL = 11  # A fd, B buffer, C bytes: from the start to the end; result: calls


class Header(IntEnum):
    """Words at the start of the shared mapping."""

    ACTIONS = 0  # how many
    TABLE = 1  # address of the first
    TURN = 2  # actions before this one are done
    THREAD_MAIN = 3  # address of thread_main
    PID = 4
    BYTES = 5  # of the whole mapping
    STARTING = 6  # context that is being started, the action after it, as two words
    STARTING_AT = 7


HEADER_BYTES: Final = 64
PAGE: Final = 4096
# arch/x86/entry/syscalls/syscall_64.tbl
_LSEEK, _READ, _YIELD, _FORK, _EXECVE = 8, 0, 24, 57, 59
_WAIT4, _EXIT_GROUP, _GETPPID, _TGKILL = 61, 231, 110, 234
# include/uapi/linux/sched.h: a thread as pthread_create makes it, without TLS of its own
_CLONE_THREAD: Final = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000
_CLONE_VFORK: Final = 0x100 | 0x4000 | 17  # CLONE_VM, CLONE_VFORK, SIGCHLD
_WALL: Final = 0x40000000
_ESRCH: Final = 3

_syscall = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))
_clone = types.ExternalFunction("clone", types.int64(*[types.int64] * 7))
_errno = types.ExternalFunction("__errno_location", types.int64())

_I64: Final = ir.IntType(64)


def _access(instruction: str) -> Any:
    """An access of exactly two bytes of machine code, for :func:`skip` to step over."""

    def define(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.VoidType(), [_I64])
            builder.asm(kind, instruction, "{rdi},~{rax},~{memory}", [args[0]], True)
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return intrinsic(define)


store_byte = _access("movb %al, (%rdi)")  # 88 07
load_byte = _access("movb (%rdi), %al")  # 8a 07

#: Offset of RIP in ucontext_t (arch/x86/include/uapi/asm/sigcontext.h, x86-64).
_RIP: Final = 168


@c_callback(types.void(types.int32, types.int64, types.int64))
def skip(signal: Any, info: Any, context: Any) -> None:
    """A SIGSEGV handler: go on after the access that failed."""
    store(context + _RIP, load(context + _RIP) + 2)


@njit
def warm(state: Any) -> None:
    """Do once what the loop does, so that its own pages are there afterwards."""
    end = state + load(state + Header.BYTES * 8)
    page = state
    while page < end:
        load_byte(page)
        page += PAGE
    _syscall(_GETPPID, 0, 0, 0, 0, 0, 0)
    _syscall(_YIELD, 0, 0, 0, 0, 0, 0)


@njit
def touch_pages(first: Any, end: Any, rewrite: Any) -> None:
    """Read each page of a range; with ``rewrite`` store back what was read."""
    page = first
    while page < end:
        load_byte(page)
        if rewrite:
            store(page, load(page))
        page += PAGE


@njit
def run(state: Any, context: Any, k: Any) -> None:
    """Perform the actions of ``context`` from the ``k``-th on, each when its turn comes."""
    count = load(state + Header.ACTIONS * 8)
    table = load(state + Header.TABLE * 8)
    main = context
    active = context == 0
    while k < count:
        row = table + k * ROW
        if not active or load(row + Column.CONTEXT * 8) != context:
            if active:
                store(state + Header.TURN * 8, k)
            active = True
            while k < count and load(table + k * ROW + Column.CONTEXT * 8) != context:
                k += 1
            while load(state + Header.TURN * 8) < k:
                _syscall(_YIELD, 0, 0, 0, 0, 0, 0)
            continue
        action = load(row + Column.ACTION * 8)
        a = load(row + Column.A * 8)
        if action == Action.STORE:
            store_byte(a)
        elif action == Action.LOAD:
            load_byte(a)
        elif action == Action.SYSCALL:
            result = _syscall(
                load(row + Column.NUMBER * 8),
                a,
                load(row + Column.B * 8),
                load(row + Column.C * 8),
                load(row + Column.D * 8),
                load(row + Column.E * 8),
                load(row + Column.F * 8),
            )
            if result == -1:
                result = -load32(_errno())
            store(row + Column.RESULT * 8, result)
        elif action == Action.READ_ALL:
            calls = 0
            _syscall(_LSEEK, a, 0, 0, 0, 0, 0)
            while True:
                got = _syscall(
                    _READ, a, load(row + Column.B * 8), load(row + Column.C * 8), 0, 0, 0
                )
                calls += 1
                if got <= 0:
                    break
            if got == -1:
                calls = -load32(_errno())
            store(row + Column.RESULT * 8, calls)
        elif action == Action.FORK:
            store(state + Header.STARTING * 8, load(row + Column.NUMBER * 8))
            pid = _syscall(_FORK, 0, 0, 0, 0, 0, 0)
            if pid == 0:
                warm(state)
                context = load(row + Column.NUMBER * 8)
                active = False
                store(state + Header.STARTING * 8, 0)
            else:
                store(row + Column.RESULT * 8, pid)
                # Both have their own copies of what they write, and the child is warm,
                # before anything else happens.
                while pid > 0 and load(state + Header.STARTING * 8) != 0:
                    _syscall(_YIELD, 0, 0, 0, 0, 0, 0)
        elif action == Action.THREAD or action == Action.VFORK:
            store(state + Header.STARTING * 8, load(row + Column.NUMBER * 8))
            store(state + Header.STARTING_AT * 8, k + 1)
            flags = _CLONE_THREAD
            if action == Action.VFORK:
                flags = _CLONE_VFORK
                store(state + Header.TURN * 8, k + 1)
            entry = load(state + Header.THREAD_MAIN * 8)
            made = _clone(entry, a, flags, state, 0, 0, 0)
            store(row + Column.RESULT * 8, made)
            if action == Action.VFORK:
                active = made <= 0  # the child has had its turn already
            elif made > 0:
                while load(state + Header.STARTING * 8) != 0:
                    _syscall(_YIELD, 0, 0, 0, 0, 0, 0)
        elif action == Action.EXIT_PROCESS:
            store(state + Header.TURN * 8, k + 1)
            _syscall(_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
        elif action == Action.EXIT_THREAD:
            store(state + Header.TURN * 8, k + 1)
            return
        elif action == Action.EXEC:
            store(state + Header.TURN * 8, k + 1)
            _syscall(_EXECVE, a, load(row + Column.B * 8), load(row + Column.C * 8), 0, 0, 0)
            store(row + Column.RESULT * 8, -load32(_errno()))
            _syscall(_EXIT_GROUP, 127, 0, 0, 0, 0, 0)
        elif action == Action.WAIT_PROCESS:
            pid = load(table + a * ROW + Column.RESULT * 8)
            _syscall(_WAIT4, pid, 0, _WALL, 0, 0, 0)
        elif action == Action.WAIT_THREAD:
            # Its exit_mm comes after the futex wake that a join waits for, and before
            # its id goes.
            pid = load(state + Header.PID * 8)
            tid = load(table + a * ROW + Column.RESULT * 8)
            while _syscall(_TGKILL, pid, tid, 0, 0, 0, 0) == 0:
                _syscall(_YIELD, 0, 0, 0, 0, 0, 0)
        k += 1
    if context != main:
        _syscall(_EXIT_GROUP, 0, 0, 0, 0, 0, 0)


@c_callback(types.int64(types.int64))
def thread_main(state: Any) -> Any:
    """What a thread or a vfork child runs."""
    context = load(state + Header.STARTING * 8)
    k = load(state + Header.STARTING_AT * 8)
    store(state + Header.STARTING * 8, 0)
    run(state, context, k)
    return 0

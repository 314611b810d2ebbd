"""Damaged text, or trace.dat, ends in a UserError of one line or in a valid trace.

The scanners run in a process of their own with NUMBA_BOUNDSCHECK=1, so a read outside of
the text would be an IndexError there.  ``MMREPLAY_FUZZ_EXAMPLES`` makes it longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_trace_dat import sample

PERF = b"""\
# captured on    : Thu
# os release : 6.18.44
       perf-exec     0/0     [000]     0.000000000: PERF_RECORD_COMM: perf-exec:10/10
 my prog [1] x    10/10    [000]     5.000000100: PERF_RECORD_COMM exec: my prog [1] x:10/10
 my prog [1] x    10/10    [000]     5.000000200: PERF_RECORD_MMAP2 10/10: [0x7f12000(0x5000) @ \
0x2d000 fe:00 339934 0]: rw-p /usr/lib/libx.so
 my prog [1] x    10/10    [001] 5.000001000: exceptions:page_fault_user: address=0x7f0000001000 \
ip=0x401000 error_code=0x6
 my prog [1] x    10/10    5.000002000:          1 minor-faults:u:     7f0000001000 401000 main (/p)
\t    7f5afc801a07 main+0x10 (/usr/bin/prog)

 my prog [1] x    10/10    [001] 5.000003000: syscalls:sys_enter_munmap: addr: 0x7f0000, len: 1
 my prog [1] x    10/10    [001] 5.000004500: syscalls:sys_exit_munmap: 0x0
 my prog [1] x    10/10    [001] 5.000005000: raw_syscalls:sys_enter: NR 9 (0, 2000, 3, 22, ff, 0)
 my prog [1] x    10/10    [001] 5.000006000: raw_syscalls:sys_exit: NR 9 = 139637976727552
 my prog [1] x    10/10    [001] 5.000006100: lock:contention_begin: 0xffff8881 (flags=SPIN|READ)
 my prog [1] x    10/10    [001] 5.000006200: lock:contention_end: 0xffff8881 (ret=0)
 my prog [1] x    10/10    [001] 5.000006300: PERF_RECORD_FORK(10:11):(10:10)
              x    10/11    [001] 5.000006400: PERF_RECORD_SWITCH OUT preempt
              x    10/11    [001] 5.000006500: PERF_RECORD_SWITCH IN
              x    10/11    [001] 5.000006600: mmap_lock:mmap_lock_acquire_returned: mm=0xffff88 \
memcg_path= write=true success=true
              x    10/11    [001] 5.000006700: PERF_RECORD_LOST lost 3
              x    10/11    [001] 5.000006800: PERF_RECORD_EXIT(10:11):(10:10)
"""
FTRACE = b"""\
# tracer: nop
        my-app-2-1001    (   1000) [003] ..... 100.000001: sys_mmap(addr: 0, len: 5000, prot: 3)
        my-app-2-1001    (   1000) [003] ..... 100.000002: sys_mmap(addr: 0, len: 5000, \
prot: 3 (PROT_READ | PROT_WRITE), flags: 22, fd: ffffffff, off: 0)
        my-app-2-1001    (   1000) [003] ..... 100.000004: sys_mmap -> 0x7f0000000000
        my-app-2-1001    (   1000) [003] d.... 100.000010: page_fault_user: \
address=0x7f0000001000 ip=0x401000 error_code=0x6
        my-app-2-1001    (   1000) [003] d..2. 100.000020: sched_switch: prev_comm=my-app-2 \
prev_pid=1001 prev_prio=120 prev_state=S ==> next_comm=swapper/3 next_pid=0 next_prio=120
          <idle>-0       (-------) [003] d..2. 100.000050: sched_switch: swapper/3:0 [120] R ==> \
my-app-2:1001 [120]
        my-app-2-1001    (   1000) [003] ..... 100.000051: sys_enter_futex: \
op=FUTEX_WAIT_BITSET|FUTEX_PRIVATE_FLAG uaddr=0x7f18391d9990 val=1 utime=0x0 val3=0xffffffff
CPU:3 [LOST 12 EVENTS]
        my-app-2-1001    (   1000) [003] ..... 100.000053: <stack trace>
 => do_syscall_64
        my-app-2-1001    3d..2. 100.000059: (+8) sys_exit_futex: 0x0
        my-app-2-1001    (   1000) [003] ..... 100.000060: sys_clone(clone_flags: 100, newsp: 0)
        my-app-2-1001    (   1000) [003] ..... 100.000065: sys_clone -> 0x3ea
        my-app-2-1002    (   1002) [003] ..... 100.000069: sys_execve -> 0x0
        my-app-2-1002    (   1002) [003] ..... 100.000070: sched_process_exit: comm=x pid=1002
"""
STRACE = b"""\
100 1700000000.000000 execve("/usr/bin/a \\"b, c/prog", ["x", "y)"], 0x7ffe) = 0 <0.000200>
strace: Process 101 attached
100 1700000000.001000 mmap(NULL, 8192, PROT_READ|PROT_WRITE, \
MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT, -1, 0) = 0x7f0000000000 <0.000010>
100 1700000000.001100 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3</tmp/a,b(c)>, 0x1000) = \
-1 ENOMEM (Cannot allocate memory) <0.000002>
100 1700000000.001200 clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x7f} <unfinished ...>
[pid   101] 1700000000.001250 madvise(0x7f0000000000, 4096, MADV_DONTNEED <unfinished ...>
100 1700000000.001260 <... clone3 resumed> => {parent_tid=[101]}, 88) = 101 <0.000055>
100 1700000000.001270 --- SIGCHLD {si_signo=SIGCHLD, si_pid=9} ---
101 1700000000.001280 <... madvise resumed>) = 0 <0.000025>
101 1700000000.001300 brk(NULL) = 0x55555555 <0.000025>
101 1700000000.001310 execveat(3, "x", [], [], 0) = ? <unavailable>
101 1700000000.001720 +++ exited with 0 +++
"""

_PROGRAM = """
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.errors import UserError
from mmreplay.importers.registry import import_trace

folder = Path(sys.argv[1])
outcomes = {"trace": 0, "refused": 0}
pieces = [
    b"", b" ", b"\\n", b"\\r\\n", b"-", b"=", b"(", b")", b"[", b"]", b"<", b">", b":", b"/", b"|",
    b'"', b"\\\\", b"{", b",", b"#", b".", b"@", b"?", b"x", b"0x", b"0", b"4194304", b"2147483648",
    b"18446744073709551615", b"99999999999999999999999", b"0xffffffffffffffff", b"-1", b"\\t",
    b"\\xff\\xfe", b"-9223372036854775808", b"<<MAP_HUGE_SHIFT", b"e" * 200, b"=>", b"==>",
]
edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),  # where
        st.integers(0, 9),  # bytes that go
        st.sampled_from(pieces) | st.binary(max_size=4),
    ),
    min_size=1,
    max_size=8,
)
orders = st.sampled_from([False, False, False, True]).flatmap(
    lambda some: st.randoms(use_true_random=False) if some else st.none()
)


@settings(
    max_examples=int(sys.argv[2]),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.sampled_from(sorted(folder.glob("good-*"))), edits, orders, st.floats(0, 2))
def damage(path, changes, order, cut):
    lines = path.read_bytes().splitlines(keepends=True)
    if order is not None:
        at = order.randrange(len(lines))
        lines[at:] = order.sample(lines[at:], len(lines) - at) + order.sample(lines, 3)
    data = b"".join(lines)
    for where, goes, piece in changes:
        at = int(where * len(data))
        data = data[:at] + piece + data[at + goes :]
    file = folder / "bad"
    file.write_bytes(data[: int(cut * len(data)) if cut < 1 else len(data)])
    try:
        trace = import_trace(file, folder / "bad.mmt", force=True)
    except UserError as error:
        assert "\\n" not in error.line()
        outcomes["refused"] += 1
        return
    trace.validate()
    outcomes["trace"] += 1


damage()
print(outcomes)
assert min(outcomes.values()) > int(sys.argv[2]) // 10
"""


@pytest.mark.slow
def test_damaged_text(tmp_path: Path) -> None:
    for name, text in (("perf", PERF), ("ftrace", FTRACE), ("strace", STRACE)):
        (tmp_path / f"good-{name}").write_bytes(text)
    for version, compression in ((6, "none"), (7, "none"), (7, "zlib")):
        sample().save(tmp_path / f"good-dat{version}{compression}", version, compression)
    environment = dict(os.environ)
    environment["NUMBA_BOUNDSCHECK"] = "1"
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2] / "replay")
    examples = environment.get("MMREPLAY_FUZZ_EXAMPLES", "600")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path), examples],
        env=environment,
        capture_output=True,
        text=True,
        timeout=None if "MMREPLAY_FUZZ_EXAMPLES" in environment else 900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

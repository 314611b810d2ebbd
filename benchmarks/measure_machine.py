"""Measure the machine at hand: costs of the memory map, of cache lines, of sleeping and waking.

    python benchmarks/measure_machine.py NAME [--rounds 40] [--seconds 0.02] [--cpus 0,1]

Writes datasets/runs/NAME/machine.parquet (one row per measurement and round) and
machine.json (provenance by allow-list, and medians).  Rounds are interleaved, so a
neighbour's noise hits all measurements alike; uncontended costs are then taken at their
lowest decile, rates of contending threads at their median, with the spread beside it.
Takes two or three minutes; run it on an otherwise idle machine.  Where that cannot be had
it asks for the highest autogroup weight (not real-time, which changes how an rwsem spins)
and keeps each window shorter than a scheduling slice.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap as pymmap
import os
import platform
import re
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

import hardware_loops as hw

ROOT = Path(__file__).resolve().parent.parent
PAGE = 4096

Samples = dict[str, list[float]]


class Control:
    """Flags on cache lines of their own, at a fixed address."""

    def __init__(self) -> None:
        self.array = np.zeros(64, np.int64)
        self.address = (self.array.ctypes.data + 63) // 64 * 64
        self._index = (self.address - self.array.ctypes.data) // 8

    def set(self, slot: int, value: int) -> None:
        self.array[self._index + slot * 8] = value


def together(seconds: float, jobs: list[tuple[int, Callable[[int], object]]]) -> list[object]:
    """Run each job (cpu, function of the control's address) in a pinned thread, start and stop
    them together, and return what they return."""
    control = Control()
    results: list[object] = [None] * len(jobs)
    ready = threading.Barrier(len(jobs) + 1)

    def body(index: int, cpu: int, job: Callable[[int], object]) -> None:
        os.sched_setaffinity(0, {cpu})
        ready.wait()
        results[index] = job(control.address)

    threads = [
        threading.Thread(target=body, args=(i, cpu, job)) for i, (cpu, job) in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    ready.wait()
    threading.Event().wait(0.01)
    control.set(0, 1)
    if seconds:
        threading.Event().wait(seconds)
        control.set(1, 1)
    for thread in threads:
        thread.join()
    return results


def region(pages: int, huge: bool = False) -> int:
    """A fresh private anonymous VMA with an anon_vma, of its own (a guard page keeps it from
    merging)."""
    guard = hw.mmap(2 * PAGE, 0)
    base = hw.mmap((pages + 1) * PAGE)
    hw.call(hw.MPROTECT, guard, PAGE, 1)
    hw.call(hw.MADVISE, base, (pages + 1) * PAGE, hw.HUGEPAGE if huge else hw.NOHUGEPAGE)
    hw.touch(base + pages * PAGE, 1, PAGE)
    return int(base)


def release(base: int, pages: int) -> None:
    hw.call(hw.MUNMAP, base, (pages + 1) * PAGE)


# -- the contention table ------------------------------------------------------------------

TABLE = {
    "touch": ("touch",),
    "touch+touch": ("touch", "touch"),
    "fill": ("fill",),
    "fill+fill": ("fill", "fill"),
    "map": ("map",),
    "map+map": ("map", "map"),
    "touch+map": ("touch", "map"),
    "fill+map": ("fill", "map"),
    "read": ("read",),
    "read+map": ("read", "map"),
}
KINDS = {"touch": hw.TOUCH, "fill": hw.FILL, "map": hw.MAP, "read": hw.READ_IN}


def contention(case: str, seconds: float, cpus: list[int], zero_fd: int, out: Samples) -> None:
    """Rates (operations per second) of the threads of one row of the table."""
    pages = int(seconds * 1_200_000) + 4096
    bases, jobs = [], []
    for i, name in enumerate(TABLE[case]):
        base = region(pages)
        bases.append(base)
        jobs.append(
            (
                cpus[i],
                lambda control, k=KINDS[name], b=base: hw.work(k, control, b, pages, zero_fd),
            )
        )
    results = together(seconds, jobs)
    for i, (name, result) in enumerate(zip(TABLE[case], results, strict=True)):
        ops, ns = result  # type: ignore[misc]
        out.setdefault(f"table/{case}/{i}:{name}_per_s", []).append(ops / ns * 1e9)
    for base in bases:
        release(base, pages)


# -- single costs -----------------------------------------------------------------------------


def singles(zero_fd: int, file_fd: int, out: Samples) -> None:
    """Uncontended costs, ns each; this thread is pinned."""

    def put(name: str, value: float) -> None:
        out.setdefault(name, []).append(float(value))

    put("syscall_ns", hw.syscalls(5000) / 5000)
    n = 1024
    base = region(n)
    put("fault_touch_ns", hw.touch(base, n, PAGE) / n)
    hw.call(hw.MADVISE, base, n * PAGE, hw.DONTNEED)
    put("fault_fill_ns", hw.per_page(hw.MADVISE, base, n, hw.POPULATE) / n)
    put("refill_present_ns", hw.per_page(hw.MADVISE, base, n, hw.POPULATE) / n)
    hw.call(hw.MADVISE, base, n * PAGE, hw.DONTNEED)
    put("populate_bulk_page_ns", hw.one_call(hw.MADVISE, base, n * PAGE, hw.POPULATE, 0, 0)[0] / n)
    put("zap_bulk_page_ns", hw.one_call(hw.MADVISE, base, n * PAGE, hw.DONTNEED, 0, 0)[0] / n)
    put("dontneed_empty_ns", hw.per_page(hw.MADVISE, base, n, hw.DONTNEED) / n)
    put("fault_zero_page_ns", hw.peek(base, n, PAGE) / n)
    hw.call(hw.MADVISE, base, n * PAGE, hw.DONTNEED)
    put("zap_1_ns", hw.zaps(256, base, 1) / 256)
    put("zap_64_ns", hw.zaps(8, base, 64) / 8)
    put("zap_512_ns", hw.zaps(2, base, 512) / 2)
    release(base, n)

    base = region(16384)
    put("table_fault_ns", hw.touch(base, 32, 512 * PAGE) / 32)
    release(base, 16384)

    base = region(4096)
    t = 0
    for i in range(512):
        t += hw.one_call(hw.READ, zero_fd, base + i * PAGE, 1, 0, 0)[0]
    put("fault_read_ns", t / 512)
    t = 0
    for _ in range(512):
        t += hw.one_call(hw.READ, zero_fd, base, 1, 0, 0)[0]
    put("read_resident_ns", t / 512)
    release(base, 4096)

    put("map_pair_ns", hw.map_pairs(500, 65536) / 500)
    for pages in (1, 64):
        a, b, c = hw.map_touch_pairs(20, pages)
        put(f"map_touch_{pages}/mmap_ns", a / 20)
        put(f"map_touch_{pages}/touch_ns", b / 20)
        put(f"map_touch_{pages}/munmap_ns", c / 20)

    base = region(1024)
    put("mprotect_whole_empty_ns", hw.toggles(200, base, 1025 * PAGE, 0) / 400)
    put("mprotect_middle_empty_ns", hw.toggles(200, base + 16 * PAGE, PAGE, 0) / 400)
    hw.touch(base, 1024, PAGE)
    put("mprotect_whole_1024_ns", hw.toggles(20, base, 1025 * PAGE, 0) / 40)
    put("mlock_1024_ns", hw.one_call(hw.MLOCK, base, 1024 * PAGE, 0, 0, 0)[0])
    put("munlock_1024_ns", hw.one_call(hw.MUNLOCK, base, 1024 * PAGE, 0, 0, 0)[0])
    moved_ns, moved = hw.one_call(hw.MREMAP, base, 1024 * PAGE, 2048 * PAGE, 1, 0)
    put("mremap_move_1024_ns", moved_ns)
    hw.call(hw.MUNMAP, moved, 2048 * PAGE)
    hw.call(hw.MUNMAP, base, 1025 * PAGE)
    put("brk_pair_ns", hw.breaks(300, 16) / 300)

    huge = (hw.mmap(64 << 20) + (2 << 20) - 1) // (2 << 20) * (2 << 20)
    if hw.call(hw.MADVISE, huge, 32 << 20, hw.HUGEPAGE) == 0:
        put("fault_huge_ns", hw.touch(huge, 4, 2 << 20) / 4)
        hw.call(hw.MUNMAP, huge, 32 << 20)

    n = 1024
    base = hw.call(hw.MMAP, 0, n * PAGE, hw.RW, 2, file_fd, 0)
    put("fault_file_around_page_ns", hw.peek(base, n, PAGE) / n)
    hw.call(hw.MADVISE, base, n * PAGE, hw.DONTNEED)
    hw.call(hw.MADVISE, base, n * PAGE, hw.RANDOM)
    put("fault_file_one_ns", hw.peek(base, n // 16, 16 * PAGE) / (n // 16))
    hw.call(hw.MADVISE, base, n * PAGE, hw.DONTNEED)
    put("fault_file_cow_ns", hw.touch(base, n, PAGE) / n)
    hw.call(hw.MUNMAP, base, n * PAGE)
    base = hw.call(hw.MMAP, 0, n * PAGE, hw.RW, hw.SHARED_ANON, -1, 0)
    put("fault_shmem_ns", hw.touch(base, n, PAGE) / n)
    hw.call(hw.MUNMAP, base, n * PAGE)

    word = np.zeros(64, np.int64)
    put("atomic_ns", hw.atomics(word.ctypes.data, 100000) / 100000)


def thread_cycle(out: Samples) -> None:
    """pthread_create and join of a thread that returns at once."""
    import ctypes
    import time

    libc = hw.LIBC
    start = ctypes.cast(libc.getpid, ctypes.c_void_p)
    handle = ctypes.c_ulong()
    libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
    t = time.perf_counter_ns()
    for _ in range(30):
        libc.pthread_create(ctypes.byref(handle), None, start, None)
        libc.pthread_join(handle, None)
    out.setdefault("thread_cycle_ns", []).append((time.perf_counter_ns() - t) / 30)


def forks(out: Samples) -> None:
    """fork with n more VMAs, and with n more pages: ns of the fork call."""
    import time

    for name, vmas, pages in (("base", 0, 0), ("vmas_10000", 10000, 0), ("pages_65536", 0, 65536)):
        base = hw.mmap(16384 * PAGE)
        for i in range(0, vmas, 2):
            hw.call(hw.MPROTECT, base + i * PAGE, PAGE, 1)
        big = region(pages) if pages else 0
        if pages:
            hw.touch(big, pages, PAGE)
        gc.disable()
        t = time.perf_counter_ns()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        ns = time.perf_counter_ns() - t
        os.waitpid(pid, 0)
        gc.enable()
        out.setdefault(f"fork_{name}_ns", []).append(ns)
        if vmas:
            t = time.perf_counter_ns()
            Path("/proc/self/maps").read_bytes()
            out.setdefault("maps_read_10000_ns", []).append(time.perf_counter_ns() - t)
        hw.call(hw.MUNMAP, base, 16384 * PAGE)
        if pages:
            release(big, pages)
    t = time.perf_counter_ns()
    Path("/proc/self/maps").read_bytes()
    out.setdefault("maps_read_base_ns", []).append(time.perf_counter_ns() - t)


# -- two threads ---------------------------------------------------------------------------------


def pairs(cpus: list[int], out: Samples) -> None:
    """Cache-line transfer, futex wake-up, context switch, shootdown."""
    a, b = cpus[:2]

    def put(name: str, value: float) -> None:
        out.setdefault(name, []).append(float(value))

    word = Control()
    rounds = 10_000
    results = together(
        0,
        [
            (a, lambda c: hw.ping(word.address, 0, rounds)),
            (b, lambda c: hw.ping(word.address, 1, rounds)),
        ],
    )
    put("line_handover_ns", max(results) / rounds)  # type: ignore[type-var]

    for label, pause in (("20us", 20_000), ("200us", 200_000)):
        n = 50
        flags = Control()
        begin, end, woken = (np.zeros(n, np.int64) for _ in range(3))
        together(
            0,
            [
                (a, lambda c, f=flags, n=n, o=woken: hw.sleeper(f.address, n, o)),
                (
                    b,
                    lambda c, f=flags, n=n, p=pause, x=begin, y=end: hw.waker(
                        f.address, n, p, x, y
                    ),
                ),
            ],
        )
        put(f"futex_wake_call_{label}_ns", float(np.median(end - begin)))
        put(f"futex_woken_{label}_ns", float(np.median(woken - begin)))
        put(f"futex_woken_{label}_q1_ns", float(np.quantile(woken - begin, 0.25)))
    word2 = Control()
    results = together(
        0,
        [
            (a, lambda c: hw.futex_pingpong(word2.address, 0, 500)),
            (a, lambda c: hw.futex_pingpong(word2.address, 1, 500)),
        ],
    )
    put("switch_futex_same_cpu_ns", max(results) / 500)  # type: ignore[type-var]
    results = together(0, [(a, lambda c: hw.yields(c, 2000)), (a, lambda c: hw.yields(c, 2000))])
    put("yield_two_ns", max(results) / 4000)  # type: ignore[type-var]
    results = together(0, [(a, lambda c: hw.yields(c, 2000))])
    put("yield_alone_ns", results[0] / 2000)  # type: ignore[operator]

    base = region(64)
    n = 500
    os.sched_setaffinity(0, {a})
    alone = hw.zaps(n, base, 1) / n
    spins_alone = together(0, [(b, lambda c: hw.spin_count(c, 6_000_000))])[0]
    results = together(
        0,
        [(a, lambda c: hw.zaps_after(c, n, base, 1)), (b, lambda c: hw.spin_count(c, 6_000_000))],
    )
    put("zap_1_alone_ns", alone)
    put("zap_1_remote_ns", results[0] / n)  # type: ignore[operator]
    # The zapper runs n flushes inside the spinner's window; what the spinner loses is theirs.
    lost = (1 - results[1] / spins_alone) * 6_000_000  # type: ignore[operator]
    put("shootdown_stolen_ns", lost / n)
    release(base, 64)


# -- provenance and output -------------------------------------------------------------------------


def facts(cpus: list[int]) -> dict[str, object]:
    """What may be told about the machine: an allow-list."""
    info = Path("/proc/cpuinfo").read_text()

    def field(name: str) -> str:
        match = re.search(rf"^{name}\s*:\s*(.*)$", info, re.MULTILINE)
        return match[1].strip() if match else ""

    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    hypervisor = re.search(r"^Hypervisor vendor:\s*(.*)$", os.popen("lscpu").read(), re.MULTILINE)
    shared = Path("/sys/devices/system/cpu/cpu0/cache/index3/shared_cpu_list")
    return {
        "cpu_model": field("model name"),
        "cpu_id": ",".join(field(k) for k in ("vendor_id", "cpu family", "model", "stepping")),
        "kernel": re.match(r"\d+\.\d+(\.\d+)?", platform.release())[0],  # type: ignore[index]
        "cpus_online": os.cpu_count(),
        "cpus_used": cpus,
        "last_level_cache_shared_by": shared.read_text().strip() if shared.exists() else "",
        "thp": re.search(r"\[(\w+)\]", thp)[1],  # type: ignore[index]
        "hypervisor": hypervisor[1].strip() if hypervisor else "none",
    }


def raise_priority() -> None:
    """A session of our own with the highest autogroup weight, so that other work shows less."""
    try:
        os.setsid()
    except PermissionError:
        print("already a session leader: start with setsid(1) -w", file=sys.stderr)
    try:
        Path("/proc/self/autogroup").write_text("-20")
    except OSError:
        print("no higher priority to be had: other work will show", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--cpus", default="0,1")
    options = parser.parse_args()
    cpus = [int(c) for c in options.cpus.split(",")]
    allowed = os.sched_getaffinity(0)
    if len(cpus) < 2 or not set(cpus) <= allowed:
        sys.exit(f"two CPUs out of {sorted(allowed)} are needed")
    raise_priority()
    out: Samples = {}
    zero_fd = os.open("/dev/zero", os.O_RDONLY)
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(PAGE) * 1024)
        file.flush()
        # Pages that the host has never backed are slow once: take and return 1.5 GiB first.
        warm = pymmap.mmap(-1, 1536 << 20)
        for i in range(0, 1536 << 20, PAGE):
            warm[i] = 1
        warm.close()
        for round_ in range(options.rounds + 1):
            if round_ == 1:
                out.clear()  # the first round compiled the loops
            os.sched_setaffinity(0, {cpus[0]})
            singles(zero_fd, file.fileno(), out)
            os.sched_setaffinity(0, set(cpus))
            thread_cycle(out)
            pairs(cpus, out)
            os.sched_setaffinity(0, set(cpus))
            for case in TABLE:
                contention(case, options.seconds, cpus, zero_fd, out)
            if round_ % 5 == 0:
                forks(out)
            print(f"round {round_} of {options.rounds}", file=sys.stderr)
    target = ROOT / "datasets" / "runs" / options.name
    target.mkdir(parents=True, exist_ok=True)
    rows = [(name, k, value) for name, values in out.items() for k, value in enumerate(values)]
    pl.DataFrame(rows, schema=["measurement", "round", "value"], orient="row").write_parquet(
        target / "machine.parquet"
    )
    summary = {
        name: {
            "q10": round(float(np.quantile(values, 0.1)), 2),
            "q1": round(float(np.quantile(values, 0.25)), 2),
            "median": round(statistics.median(values), 2),
            "q3": round(float(np.quantile(values, 0.75)), 2),
        }
        for name, values in sorted(out.items())
    }
    document = {"schema": 1, "machine": facts(cpus), "rounds": options.rounds, "summary": summary}
    (target / "machine.json").write_text(json.dumps(document, indent=1) + "\n")
    for name, row in summary.items():
        print(
            f"{name:34} q10 {row['q10']:>12} q1 {row['q1']:>12}"
            f" median {row['median']:>12} q3 {row['q3']:>12}"
        )


if __name__ == "__main__":
    main()

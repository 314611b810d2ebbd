"""What this machine allows, and what to do about each thing that it does not."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mmreplay.errors import UserError
from mmreplay.hardware import facts, perfcount, tracing
from mmreplay.hardware.run_worker import available_bytes
from mmreplay.hardware.suite import has_populate, thread_limit
from mmreplay.trace.header import plain_release

Status = Literal["yes", "partly", "no"]

#: What the largest shipped workload touches (pft-one-vma), with some room.
_SUITE_BYTES: Final = 2 << 30
#: Threads of the largest point of a full suite, per CPU.
_THREADS_PER_CPU: Final = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    ``needed_for``: the commands that need it.  ``fix``: empty where nothing is to do.
    """

    name: str
    status: Status
    found: str
    needed_for: str = ""
    fix: str = ""


def examine() -> list[Finding]:
    """Look at everything; nothing is changed."""
    checks: tuple[Callable[[], Finding], ...] = (
        _platform,
        _per_vma_locks,
        _populate,
        _tracefs,
        _events,
        _perf,
        _perf_events,
        _memory,
        _threads,
        _cpus,
        _clock,
        _governor,
        _hypervisor,
        _load,
        _debugging,
    )
    return [check() for check in checks]


def _platform() -> Finding:
    kernel = plain_release(platform.release()) or platform.release()
    told = f"{platform.system()} {kernel}, {platform.machine()}"
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        return Finding("platform", "yes", told, "measure, locks verify")
    return Finding(
        "platform",
        "no",
        told,
        "measure, locks verify",
        "measure on Linux on x86-64; traces can be imported and predicted from anywhere",
    )


def _per_vma_locks() -> Finding:
    has = facts.per_vma_locks()
    needed = "measure --path vma, to differ from mmap_lock"
    if has:
        return Finding("per-VMA locks", "yes", "CONFIG_PER_VMA_LOCK", needed)
    if has is None:
        return Finding(
            "per-VMA locks",
            "partly",
            "cannot be told: the configuration is not readable",
            needed,
            "read what measure says about the locks of each path (as root)",
        )
    return Finding(
        "per-VMA locks", "no", "this kernel has none", needed, "boot Linux 6.4 or newer to see both"
    )


def _populate() -> Finding:
    needed = "measure --path mmap_lock"
    if has_populate():
        return Finding("MADV_POPULATE_WRITE", "yes", "accepted", needed)
    return Finding(
        "MADV_POPULATE_WRITE",
        "no",
        "refused: it came with Linux 5.14",
        needed,
        "use --path kernel for faults under mmap_lock",
    )


def _tracefs() -> Finding:
    needed = "record, locks verify, measure (to check the locks of each path)"
    try:
        root = tracing.tracefs()
    except UserError as error:
        return Finding("tracefs", "no", error.problem, needed, error.fix)
    if not os.access(root / "instances", os.W_OK):
        return Finding(
            "tracefs",
            "partly",
            "readable, but no tracing instance can be made",
            needed,
            "run as root",
        )
    return Finding("tracefs", "yes", "an instance of our own can be made", needed)


#: Event → since when, and what it is for.
_EVENTS: Final = {
    "mmap_lock/mmap_lock_acquire_returned": "Linux 5.11 with CONFIG_TRACING",
    "exceptions/page_fault_user": "x86 with CONFIG_TRACING",
    "raw_syscalls/sys_enter": "CONFIG_HAVE_SYSCALL_TRACEPOINTS and CONFIG_FTRACE_SYSCALLS",
    "sched/sched_switch": "CONFIG_TRACING",
    "lock/contention_begin": "Linux 5.19",
}


def _events() -> Finding:
    needed = "record, import"
    for root in (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing")):
        if os.access(root / "events", os.R_OK | os.X_OK) and (root / "events/sched").is_dir():
            break
    else:
        return Finding("events", "no", "tracefs is not readable", needed, "run as root")
    missing = [name for name in _EVENTS if not (root / "events" / name).is_dir()]
    if not missing:
        return Finding("events", "yes", "all that a recording can use", needed)
    wanted = "; ".join(f"{name.replace('/', ':')} needs {_EVENTS[name]}" for name in missing)
    listed = ", ".join(name.replace("/", ":") for name in missing)
    return Finding("events", "partly", f"missing: {listed}", needed, wanted)


def _perf() -> Finding:
    if shutil.which("perf"):
        return Finding("perf", "yes", "installed", "record")
    if shutil.which("strace"):
        return Finding(
            "perf",
            "partly",
            "not installed; strace is",
            "record",
            "install perf (linux-perf or linux-tools): strace sees no page faults",
        )
    return Finding(
        "perf",
        "no",
        "neither perf nor strace is installed",
        "record",
        "install perf (linux-perf or linux-tools)",
    )


def _perf_events() -> Finding:
    path = Path("/proc/sys/kernel/perf_event_paranoid")
    needed = "record"
    if not path.exists():
        return Finding("perf events", "no", "this kernel has none", needed, "CONFIG_PERF_EVENTS")
    level = path.read_text().strip()
    try:
        perfcount.Counters(perfcount.tracepoint_ids(tracing.tracefs()), 1)
    except (UserError, OSError) as error:
        why = error.problem if isinstance(error, UserError) else str(error.strerror)
        return Finding(
            "perf events",
            "no",
            f"tracepoints cannot be opened ({why}); paranoid level {level}",
            needed,
            "run as root, or sysctl kernel.perf_event_paranoid=-1",
        )
    return Finding(
        "perf events", "yes", f"tracepoints can be opened; paranoid level {level}", needed
    )


def _memory() -> Finding:
    free = available_bytes()
    told = f"{free / 2**30:.1f} GiB available"
    if free >= _SUITE_BYTES:
        return Finding("memory", "yes", told, "measure")
    return Finding(
        "memory",
        "partly",
        told,
        "measure",
        "free some, or raise the cgroup's memory.max: workloads that do not fit are left out",
    )


def _threads() -> Finding:
    limit, name = thread_limit()
    wanted = _THREADS_PER_CPU * len(facts.topology()) + 8
    told = f"{limit:,} at most ({name})"
    if limit >= wanted:
        return Finding("threads", "yes", told, "measure")
    return Finding("threads", "partly", told, "measure", f"raise {name} to {wanted} or more")


def _cpus() -> Finding:
    places = facts.topology()
    cores = len(set(places.values()))
    online = os.cpu_count() or 1
    quota = facts.cgroup_cpus()
    told = f"{len(places)} CPUs of {online} online, {cores} cores"
    if quota is not None and quota < len(places):
        return Finding(
            "CPUs",
            "partly",
            f"{told}; the cgroup's quota is {quota:g} CPUs",
            "measure",
            "raise cpu.max: threads beyond it are throttled, which looks like waiting",
        )
    if len(places) < 2:
        return Finding(
            "CPUs",
            "partly",
            told,
            "measure",
            "use a machine with more: one CPU shows no contention",
        )
    if cores < len(places):
        return Finding(
            "CPUs", "yes", f"{told} (SMT): beyond {cores} threads two share a core", "measure"
        )
    return Finding("CPUs", "yes", told, "measure")


def _clock() -> Finding:
    text = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    source = text.read_text().strip() if text.exists() else "unknown"
    if source in ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page"):
        return Finding("clock", "yes", f"{source}, read without a system call", "measure, record")
    return Finding(
        "clock",
        "partly",
        f"{source}: each reading is a system call",
        "measure, record",
        "boot with clocksource=tsc where the CPU's is reliable",
    )


def _governor() -> Finding:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if not path.exists():
        return Finding("CPU governor", "yes", "none is visible (a guest, or fixed)", "measure")
    governor = path.read_text().strip()
    if governor == "performance":
        return Finding("CPU governor", "yes", governor, "measure")
    return Finding(
        "CPU governor",
        "partly",
        governor,
        "measure",
        "cpupower frequency-set -g performance, for steady clocks",
    )


def _hypervisor() -> Finding:
    kind = facts.machine_facts()["hypervisor"]
    if kind == "none":
        return Finding("hypervisor", "yes", "none: this is the machine itself", "measure")
    return Finding(
        "hypervisor",
        "partly",
        f"a guest ({kind})",
        "measure",
        "the host's load and its page tables are part of the figures: measure when it is quiet",
    )


def _load() -> Finding:
    running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1
    load = float(Path("/proc/loadavg").read_text().split()[0])
    told = f"load {load:.1f}, {running} other tasks running now"
    if load < 0.3:
        return Finding("quiet", "yes", told, "measure")
    return Finding("quiet", "partly", told, "measure", "end other programs before measuring")


def _debugging() -> Finding:
    config = facts.kernel_config()
    if config is None:
        return Finding(
            "kernel configuration",
            "partly",
            "not readable",
            "measure (provenance)",
            "CONFIG_IKCONFIG_PROC, or /boot/config-RELEASE",
        )
    slow = [key for key in facts.DEBUGGING if config.get(key) == "y"]
    if not slow:
        return Finding("kernel configuration", "yes", "readable, nothing in it slows faults down")
    return Finding(
        "kernel configuration",
        "partly",
        ", ".join(slow),
        "measure",
        "the kernel checks itself: it is slower than those that are deployed",
    )


def as_data(findings: list[Finding]) -> dict[str, Any]:
    """Plain data, with the machine's facts."""
    rows = [
        {
            "name": f.name,
            "status": f.status,
            "found": f.found,
            "needed_for": f.needed_for,
            "fix": f.fix,
        }
        for f in findings
    ]
    return {"schema": 1, "findings": rows, "machine": facts.machine_facts()}

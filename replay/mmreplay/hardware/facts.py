"""What may be told about a machine: an allow-list, read from /proc and /sys.

Never a host name, user, path or serial number: there is no place for them here.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from mmreplay.schema import PAGE_SIZE
from mmreplay.trace.header import plain_release

#: Kernel configuration that decides how the memory map locks and what faults cost.
CONFIG: Final = (
    "CONFIG_PER_VMA_LOCK",
    "CONFIG_PER_VMA_LOCK_STATS",
    "CONFIG_PREEMPT",
    "CONFIG_PREEMPT_DYNAMIC",
    "CONFIG_PREEMPT_LAZY",
    "CONFIG_PREEMPT_RT",
    "CONFIG_PREEMPT_VOLUNTARY",
    "CONFIG_PREEMPT_NONE",
    "CONFIG_RWSEM_SPIN_ON_OWNER",
    "CONFIG_TRANSPARENT_HUGEPAGE",
    "CONFIG_NUMA_BALANCING",
    "CONFIG_MEMCG",
    "CONFIG_LRU_GEN",
    "CONFIG_MITIGATION_PAGE_TABLE_ISOLATION",
    "CONFIG_PARAVIRT_SPINLOCKS",
    "CONFIG_HZ",
    "CONFIG_DEBUG_VM",
    "CONFIG_LOCKDEP",
    "CONFIG_PROVE_LOCKING",
    "CONFIG_KASAN",
    "CONFIG_INIT_ON_ALLOC_DEFAULT_ON",
    "CONFIG_SPECULATIVE_PAGE_FAULT",
)
#: Of these, those with which the kernel checks itself and is slow.
DEBUGGING: Final = ("CONFIG_DEBUG_VM", "CONFIG_LOCKDEP", "CONFIG_PROVE_LOCKING", "CONFIG_KASAN")
_CPU: Final = Path("/sys/devices/system/cpu")


def _text(path: Path | str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _bracketed(path: str) -> str | None:
    match = re.search(r"\[([\w+]+)\]", _text(path) or "")
    return match[1] if match else None


def kernel_config() -> dict[str, str] | None:
    """The keys of :data:`CONFIG` that are set; None where the configuration cannot be read."""
    packed = Path("/proc/config.gz")
    try:
        if packed.exists():
            text = gzip.decompress(packed.read_bytes()).decode()
        else:
            text = Path(f"/boot/config-{platform.release()}").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"^(CONFIG_\w+)=(\S+)$", text, re.MULTILINE))
    return {key: found[key] for key in CONFIG if key in found}


def per_vma_locks() -> bool | None:
    """Whether faults can take per-VMA locks: by configuration, else by release; None unknown."""
    config = kernel_config()
    if config is not None:
        return config.get("CONFIG_PER_VMA_LOCK") == "y"
    if "vma_lock_success" in (_text("/proc/vmstat") or ""):
        return True
    release = plain_release(platform.release()) or "0.0"
    return False if tuple(map(int, release.split(".")[:2])) < (6, 4) else None


def topology() -> dict[int, tuple[int, int]]:
    """CPU → (socket, core) of the CPUs that this process may run on."""
    found = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        place = _CPU / f"cpu{cpu}" / "topology"
        socket = _text(place / "physical_package_id") or "0"
        core = _text(place / "core_id") or str(cpu)
        found[cpu] = (int(socket), int(core))
    return found


def cache_places() -> dict[int, tuple[int, int, int]]:
    """CPU → (socket, last-level cache, core), numbers unique over the machine."""
    found = {}
    caches: dict[str, int] = {}
    cores: dict[tuple[int, int], int] = {}
    for cpu, place in topology().items():
        folder = _CPU / f"cpu{cpu}" / "cache"
        indices = sorted(folder.glob("index[0-9]*"), key=lambda index: int(index.name[5:]))
        shared = _text(indices[-1] / "shared_cpu_list") if indices else None
        cache = caches.setdefault(shared or f"socket {place[0]}", len(caches))
        found[cpu] = (place[0], cache, cores.setdefault(place, len(cores)))
    return found


def pinning_order() -> list[int]:
    """CPUs in the order in which threads are pinned: one of each core, socket by socket, then
    the cores' other hardware threads."""
    places = topology()
    seen: dict[tuple[int, int], int] = {}
    turn = {}
    for cpu, place in places.items():
        turn[cpu] = seen.get(place, 0)
        seen[place] = turn[cpu] + 1
    return sorted(places, key=lambda cpu: (turn[cpu], places[cpu][0], cpu))


def cgroup_cpus() -> float | None:
    """CPUs that the cgroup's quota amounts to; None without a limit."""
    text = _text("/sys/fs/cgroup/cpu.max")
    if text and not text.startswith("max"):
        quota, period = text.split()[:2]
        return int(quota) / int(period)
    quota, period = (
        _text(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") or "" for name in ("quota", "period")
    )
    if quota.lstrip("-").isdigit() and int(quota) > 0 and period.isdigit():
        return int(quota) / int(period)
    return None


def _hypervisor() -> str:
    info = _text("/proc/cpuinfo") or ""
    if not re.search(r"^flags\s*:.*\bhypervisor\b", info, re.MULTILINE):
        return "none"
    kind = _text("/sys/hypervisor/type")
    if kind:
        return kind
    if shutil.which("lscpu"):
        told = subprocess.run(["lscpu"], capture_output=True, text=True, env={"LC_ALL": "C"}).stdout
        match = re.search(r"^Hypervisor vendor:\s*(.*)$", told, re.MULTILINE)
        if match:
            return match[1].strip()
    return "unknown kind"


def _mitigations() -> dict[str, str]:
    folder = _CPU / "vulnerabilities"
    if not folder.is_dir():
        return {}
    found = {path.name: _text(path) or "" for path in sorted(folder.iterdir())}
    return {name: text for name, text in found.items() if text != "Not affected"}


def machine_facts() -> dict[str, Any]:
    """The provenance of runs: kernel, CPU, topology, and what changes their speed."""
    info = _text("/proc/cpuinfo") or ""

    def field(name: str) -> str | None:
        match = re.search(rf"^{name}\s*:\s*(.*)$", info, re.MULTILINE)
        return match[1].strip() if match else None

    places = topology()
    cores = set(places.values())
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text("/proc/meminfo") or "", re.MULTILINE)
    nodes = list(Path("/sys/devices/system/node").glob("node[0-9]*"))
    preempt = re.search(r"\((\w+)\)", _text("/sys/kernel/debug/sched/preempt") or "")
    shared = _text(_CPU / "cpu0/cache/index3/shared_cpu_list")
    names = ("vendor_id", "cpu family", "model", "stepping")
    return {
        "kernel": plain_release(platform.release()),
        "kernel_config": kernel_config(),
        "cpu_model": field("model name"),
        "cpu_id": ",".join(field(name) or "?" for name in names),
        "microcode": field("microcode"),
        "hypervisor": _hypervisor(),
        "cpus_online": os.cpu_count(),
        "cpus_allowed": len(places),
        "cpus_by_cgroup": cgroup_cpus(),
        "sockets": len({socket for socket, _ in cores}),
        "cores": len(cores),
        "threads_per_core": -(-len(places) // max(1, len(cores))),
        "numa_nodes": max(1, len(nodes)),
        "last_level_cache_shared_by": shared,
        "governor": _text(_CPU / "cpu0/cpufreq/scaling_governor"),
        "boost": _text(_CPU / "cpufreq/boost"),
        "clock_source": _text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "memory_kib": int(memory[1]) if memory else None,
        "page_size": PAGE_SIZE,
        "thp": _bracketed("/sys/kernel/mm/transparent_hugepage/enabled"),
        "preemption": preempt[1] if preempt else None,
        "lru_gen": _text("/sys/kernel/mm/lru_gen/enabled"),
        "mitigations": _mitigations(),
    }

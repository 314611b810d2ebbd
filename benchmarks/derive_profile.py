"""Turn a measurement of benchmarks/measure_machine.py into a machine profile.

    python benchmarks/derive_profile.py NAME "TITLE"

Reads datasets/runs/NAME/machine.json, writes models/machines/NAME.toml.  *measured* is a
number that one measurement gives by itself (or a difference or slope of two); *fitted* a
share of a measured total, the total being met and the share stated here; *assumed* has no
measurement behind it.  Uncontended costs come from low quartiles.  The four wake-up costs
are fitted afterwards, through the engine, by benchmarks/fit_wakeup.py; they and what
benchmarks/fault_costs.py measured are kept here when the profile is derived anew.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Row = tuple[str, float, str, str, float]


def rows(q: dict[str, float]) -> dict[str, list[Row]]:
    """Section -> (name, value, basis, source, spread); ``q``: low quartiles."""
    meas, fit, assume = "measured", "fitted", "assumed"
    syscall = q["syscall_ns"]
    touch = q["fault_touch_ns"]
    zero = q["fault_huge_ns"] * 0.98 / 512
    bare = q["fault_zero_page_ns"]  # entry, walk, dispatch, PTE; no page
    batches = 1500 / 31 + 4000 / 63 + 200 / 63
    table = q["table_fault_ns"] - touch
    madvise = q["dontneed_empty_ns"] - syscall - 0.07 * bare
    find = 200.0
    mmap = q["map_touch_1/mmap_ns"] - syscall
    munmap = q["map_pair_ns"] - q["map_touch_1/mmap_ns"] - syscall - find
    zap = q["zap_bulk_page_ns"]
    first = q["map_touch_1/touch_ns"] - touch
    bare_s = "share of fault_zero_page_ns (a read fault served by the zero page)"
    mmap_s = "share of map_touch_1/mmap_ns less syscall"
    munmap_s = "share of munmap = map_pair_ns - mmap, less syscall and find"
    zap_s = "share of zap_bulk_page_ns (DONTNEED of 1024 pages, per page)"
    share_s = "in proportion to zero_page, as on epyc-zen4-guest-2cpu"
    middle_s = "mprotect_middle_empty_ns (split in three and merge back), shares by judgement"
    thread_s = "share of thread_cycle_ns (pthread_create and join)"
    costs: list[Row] = [
        ("fault_entry", 0.58 * bare, fit, bare_s, 0.2),
        ("walk", 0.07 * bare, fit, bare_s, 0.2),
        ("fault_common", 0.14 * bare, fit, bare_s, 0.2),
        ("set_pte", 0.19 * bare, fit, bare_s, 0.2),
        (
            "alloc_page",
            touch - bare - zero - batches,
            fit,
            "fault_touch_ns - fault_zero_page_ns - zero_page - batches",
            0.3,
        ),
        ("zero_page", zero, meas, "98 % of fault_huge_ns / 512", 0.2),
        ("pt_alloc", 0.92 * table, fit, "92 % of table_fault_ns - fault_touch_ns", 0.3),
        ("pt_install", 0.08 * table, fit, "8 % of table_fault_ns - fault_touch_ns", 0.3),
        ("anon_vma", 0.8 * first, fit, "80 % of map_touch_1/touch_ns - fault_touch_ns", 0.3),
        ("rmap_link", 0.2 * first, fit, "20 % of map_touch_1/touch_ns - fault_touch_ns", 0.3),
        (
            "copy_page",
            0.7 * (q["fault_file_cow_ns"] - touch + zero),
            fit,
            "70 % of what a copy of a file page takes beyond an anonymous fault without zeroing",
            0.2,
        ),
        (
            "file_lookup",
            0.3 * (q["fault_file_cow_ns"] - touch + zero),
            fit,
            "30 % of the same",
            0.3,
        ),
        (
            "file_map",
            0.9 * q["fault_file_around_page_ns"],
            fit,
            "90 % of fault_file_around_page_ns (mapped per page of a large folio)",
            0.3,
        ),
        (
            "shmem_alloc",
            q["fault_shmem_ns"] - bare - zero - batches - 300,
            fit,
            "fault_shmem_ns less the other steps",
            0.3,
        ),
        ("alloc_huge", 0.02 * q["fault_huge_ns"], fit, "2 % of fault_huge_ns", 0.3),
        ("zero_huge", 0.98 * q["fault_huge_ns"], fit, "98 % of fault_huge_ns", 0.2),
        ("mkwrite", 3000, assume, "journal credit and page dirtying of a local file system", 0.5),
        ("io_submit", 5000, assume, "block layer and virtio submission", 0.5),
        ("signal", 2500, assume, "force_sig_fault and the frame set-up", 0.3),
        ("stack_expand", 400, assume, "acct_stack_growth and checks", 0.3),
        # not measured by measure_machine.py: as by zero_page on epyc-zen4-guest-2cpu (384 there)
        ("cold_page", 0.91 * zero, assume, share_s, 0.3),
        ("file_around", 1.43 * zero, assume, share_s, 0.3),
        ("cold_file", 0.39 * zero, assume, share_s, 0.3),
        ("table_gather", 3.9 * zero, assume, share_s, 0.3),
        ("lru_batch", 1500, assume, "31 pages at about 50 ns under lru_lock", 0.3),
        ("lru_drain", 300, assume, "measured on epyc-zen4-guest-2cpu", 0.3),
        ("zone_batch", 4000, assume, "63 pages at about 60 ns under the zone lock", 0.3),
        ("memcg_batch", 200, assume, "two atomics a level, and the stock", 0.3),
        ("syscall", syscall, meas, "syscall_ns (getppid through libc)", 0.2),
        ("find", find, assume, "a maple-tree walk with cold nodes and the range checks", 0.2),
        ("gap_search", 0.15 * mmap, fit, mmap_s, 0.2),
        ("account", 0.22 * mmap, fit, mmap_s, 0.2),
        ("vma_alloc", 0.31 * mmap, fit, mmap_s, 0.2),
        ("tree_store", 0.32 * mmap, fit, mmap_s, 0.3),
        ("detach", 0.65 * munmap - 0.32 * mmap, fit, munmap_s + " and the tree store", 0.2),
        ("rmap_unlink", 0.1 * munmap, fit, munmap_s, 0.3),
        ("vma_free", 0.25 * munmap, fit, munmap_s, 0.2),
        ("set_flags", 0.35 * q["mprotect_middle_empty_ns"], fit, middle_s, 0.2),
        ("split", 0.08 * q["mprotect_middle_empty_ns"], fit, middle_s, 0.3),
        ("merge", 0.06 * q["mprotect_middle_empty_ns"], fit, middle_s, 0.3),
        (
            "rewrite",
            (q["mprotect_whole_1024_ns"] - q["mprotect_whole_empty_ns"]) / 1024,
            meas,
            "slope of mprotect over 1024 pages",
            0.2,
        ),
        ("zap", 0.35 * zap, fit, zap_s, 0.2),
        ("free_page", 0.65 * zap, fit, zap_s, 0.2),
        ("free_table", 0.4 * table, assume, "40 % of allocating one", 0.3),
        ("move_pte", q["mremap_move_1024_ns"] / 1024, meas, "mremap_move_1024_ns / 1024", 0.2),
        ("mlock_page", q["munlock_1024_ns"] / 1024, meas, "munlock_1024_ns / 1024", 0.3),
        ("scan", 15, assume, "one PTE read and a folio check", 0.3),
        (
            "madvise_common",
            madvise,
            meas,
            "dontneed_empty_ns less syscall and walk",
            0.2,
        ),
        ("mm_alloc", 4000, assume, "mm_struct, page-table root, percpu counters", 0.3),
        (
            "dup_vma",
            (q["fork_vmas_10000_ns"] - q["fork_base_ns"]) / 10000,
            meas,
            "slope of fork over 10,000 VMAs",
            0.3,
        ),
        (
            "copy_pte",
            (q["fork_pages_65536_ns"] - q["fork_base_ns"]) / 65536,
            meas,
            "slope of fork over 65,536 pages",
            0.3,
        ),
        ("fork_common", 80000, assume, "copy_process and wake-up of the child", 0.3),
        ("exec_common", 300000, assume, "binary loader without the map", 0.3),
        ("exit_common", 0.25 * q["thread_cycle_ns"], fit, "25 %, " + thread_s, 0.3),
        ("thread_create", 0.5 * q["thread_cycle_ns"], fit, "50 %, " + thread_s, 0.3),
        ("proc_open", 2500, assume, "seq_file set-up and mm reference", 0.3),
        (
            "proc_line",
            (q["maps_read_10000_ns"] - q["maps_read_base_ns"]) / 10000,
            meas,
            "slope of reading /proc/self/maps over 10,000 VMAs",
            0.3,
        ),
        (
            "gup",
            q["refill_present_ns"] - syscall - madvise - find,
            fit,
            "refill_present_ns (POPULATE_WRITE of a present page) less syscall, madvise_common,"
            " find",
            0.3,
        ),
        ("remote_copy", 400, assume, "copy of 4 KiB and the kmap", 0.3),
        ("uffd_common", 600, assume, "context checks", 0.3),
        ("collapse", 0.98 * q["fault_huge_ns"] * 1.5, assume, "copy at 1.5 times zeroing", 0.3),
    ]
    flush = q["zap_1_ns"] - q["dontneed_empty_ns"] - zap
    cpu = "store forwarding through a shared L1; no hyperthreads to see here"
    far = "1.3 times (other cache) and 2 times (other socket) line_llc_ns: one cache to see here"
    return {
        "costs": costs,
        "sleeps": [
            ("io", 120000, assume, "4 KiB random read of a virtio disk on NVMe", 0),
            ("page_lock", 60000, assume, "half an io", 0),
            ("uffd", 60000, assume, "two futex-like wake-ups of this machine and a copy", 0),
        ],
        "lines": [
            ("atomic_ns", q["atomic_ns"], meas, "atomic_ns", 0),
            ("line_smt_ns", 15, assume, cpu, 0),
            (
                "line_llc_ns",
                q["line_handover_ns"],
                meas,
                "line_handover_ns: two CPUs move a counter to and fro (48 ns in the best tenth)",
                0,
            ),
            ("line_socket_ns", 1.3 * q["line_handover_ns"], assume, far, 0),
            ("line_cross_ns", 2 * q["line_handover_ns"], assume, far, 0),
        ],
        "wake": [
            (
                "waker_ns",
                q["futex_wake_call_20us_ns"] - syscall,
                meas,
                "futex_wake_call_20us_ns less syscall",
                0,
            ),
            (
                "woken_ns",
                q["futex_woken_20us_ns"],
                meas,
                "futex_woken_20us_ns: from the wake-up until the woken runs, CPU idle",
                0,
            ),
            ("sleep_ns", 300, assume, "a trial of the same kind found 0.3 us", 0),
            (
                "switch_ns",
                q["yield_two_ns"] - q["yield_alone_ns"],
                meas,
                "yield_two_ns - yield_alone_ns",
                0,
            ),
            ("slice_ns", 4e6, assume, "one tick at HZ=250: longer than base_slice_ns (6.18)", 0),
            ("spin_poll_ns", 40, assume, "one cpu_relax and a load of a shared line", 0),
        ],
        "shootdown": [
            (
                "shootdown_base_ns",
                flush,
                meas,
                "zap_1_ns - dontneed_empty_ns - one page: mmu_gather and local flush",
                0,
            ),
            (
                "shootdown_first_ns",
                q["zap_1_remote_ns"] - q["zap_1_alone_ns"],
                meas,
                "zap_1_remote_ns - zap_1_alone_ns: IPI to the other virtual CPU and its ack",
                0,
            ),
            ("shootdown_next_ns", 2000, assume, "one more VM exit for the ICR write", 0),
            (
                "shootdown_handler_ns",
                q["shootdown_stolen_ns"],
                meas,
                "shootdown_stolen_ns: what a spinning thread lost per flush",
                0,
            ),
        ],
        "limits": [
            ("zero_bytes_per_ns", 4096 / zero, meas, "4096 / zero_page", 0),
        ],
    }


def line(row: Row) -> str:
    name, value, basis, source, spread = row
    number = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    extra = f", spread = {spread}" if spread else ""
    return f'{name} = {{ value = {number}, basis = "{basis}"{extra}, source = "{source}" }}\n'


def main() -> None:
    name, title = sys.argv[1:3]
    run = json.loads((ROOT / "datasets" / "runs" / name / "machine.json").read_text())
    summary, machine = run["summary"], run["machine"]
    q = {key: row["q1"] for key, row in summary.items()}
    path = ROOT / "models" / "machines" / f"{name}.toml"
    sections = rows(q)
    if path.exists():  # what fit_wakeup.py found stays
        whole = tomllib.loads(path.read_text())
        old = whole["wake"]
        sections["wake"] = [
            (k, old[k]["value"], old[k]["basis"], old[k]["source"], s)
            if old[k]["basis"] == "fitted"
            else (k, v, b, t, s)
            for k, v, b, t, s in sections["wake"]
        ]
        costs = whole["costs"]  # and what fault_costs.py measured
        sections["costs"] = [
            (k, costs[k]["value"], costs[k]["basis"], costs[k]["source"], s)
            if k in costs and "benchmarks/" in costs[k]["source"]
            else (k, v, b, t, s)
            for k, v, b, t, s in sections["costs"]
        ]
    cpus = machine["cpus_online"]
    out = [
        f"# {title}\n#\n",
        f"# Derived by benchmarks/derive_profile.py from datasets/runs/{name}/machine.json\n",
        "# (benchmarks/measure_machine.py); wake-up costs marked fitted:"
        " benchmarks/fit_wakeup.py.\n",
        "schema = 1\n",
        f'title = "{title}"\nassumed = false\n',
        f'cpu_model = "{machine["cpu_model"]}"\ncpu_ids = ["{machine["cpu_id"]}"]\n',
        f'notes = ["measured on Linux {machine["kernel"]}, THP {machine["thp"]}, hypervisor '
        f'{machine["hypervisor"]}; {run["rounds"]} interleaved rounds"]\n',
        "\n[topology]\n",
        line(("sockets", 1, "measured", "lscpu, as the guest sees it", 0)),
        line(("caches_per_socket", 1, "measured", "lscpu: one L3 for all CPUs", 0)),
        line(("cores_per_cache", cpus, "measured", "lscpu", 0)),
        line(("threads_per_core", 1, "measured", "lscpu; the host may hide hyperthreads", 0)),
    ]
    for section, entries in sections.items():
        out.append(f"\n[{section}]\n")
        out += [line(entry) for entry in entries]
    speed = ("", 1.0, "assumed", "the guest sees no frequency", 0.0)
    if path.exists():
        kept = tomllib.loads(path.read_text())["frequency"][0]["speed"]
        speed = ("", kept["value"], kept["basis"], kept["source"], 0.0)
    out.append(f"\n[[frequency]]\nactive_cores = {cpus}\nspeed = ")
    out.append(line(speed).removeprefix(" = "))
    path.write_text("".join(out))


if __name__ == "__main__":
    main()

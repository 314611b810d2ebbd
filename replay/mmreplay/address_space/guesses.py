"""What a plan guessed, learnt or could not use, in words: one line per counter."""

from __future__ import annotations

from typing import Final

from mmreplay.address_space.planner import PlanBundle

#: Counters of a bundle in the order of their weight, and what each counts.
WORDS: Final[dict[str, str]] = {
    "unknown_faults": "faults where no VMA is known: an unknown VMA of 2 MiB was assumed",
    "map_conflicts": "VMAs that stood where a new mapping was placed freely; of these:",
    "conflicts_listed": "  listed or told by a record, unmapped by no recorded call",
    "conflicts_inherited": "  inherited over fork, unmapped by the parent meanwhile",
    "conflicts_called": "  made by a recorded call, unmapped by none (lost, or not recorded)",
    "stale_pages": "pages thought mapped under a new mapping",
    "calls_disagreed": "calls whose recorded result the rules do not expect",
    "fault_without_address": "faults without an address, or in the kernel's half",
    "access_contradicted": "faults that succeeded although the VMA forbids them",
    "failed_in_vma": "faults that failed although the VMA allows them",
    "present_learnt": "faults that found a page mapped which the trace never mapped",
    "absent_unexpected": "faults that found a page missing (reclaim, or fault-around was less)",
    "write_guessed": "faults without error bits: read or write taken from the VMA",
    "cow_guessed": "write-protect faults on a page of unknown history, taken for copies",
    "huge_guessed": "first faults of a region taken for huge pages",
    "huge_contradicted": "of these, shown by later faults to be none",
    "fault_around_pages": "pages assumed mapped by fault-around",
    "table_assumed": "page-table pages assumed to be there from before",
    "anon_assumed": "VMAs assumed to have an anon_vma from before",
    "brk_unknown": "brk calls without a known break before them",
    "fork_into_used_space": "forks into an address space that was in use already",
    "file_guessed": "mappings whose file is known by its descriptor only",
    "think_wall_fallback": "operations before which all time counts as computing",
    "learnt_mappings": "mappings learnt from listings and records",
    "mapping_record_matched": "mapping calls whose record names their file",
    "wakeups": "waits for other threads of the trace",
    "wakeups_left_out": "waits for or of threads that the plan does not have: think time",
    "wakeups_cyclic": "waits that would never end: think time",
    "clone_ranges": "ranges placed anew for cloned threads",
}


def guesses(bundle: PlanBundle) -> list[tuple[int, str, str]]:
    """(count, name, words) of the counters that are not 0, in the order of :data:`WORDS`."""
    found = bundle.counters
    return [(found[name], name, words) for name, words in WORDS.items() if found.get(name)]

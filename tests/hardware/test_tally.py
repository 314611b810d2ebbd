"""Counting acquisitions from the text of a trace."""

from __future__ import annotations

from dataclasses import replace

from mmreplay.hardware.tracing import Tally, tally

OWN = [(0x1000_0000, 0x2000_0000)]


Z = Tally(user=0, kernel=0)


def tallied(**counts: int) -> Tally:
    return replace(Z, **counts)  # type: ignore[arg-type]


def event(pid: int, text: str) -> str:
    return f"           mmr-{pid:<7} [001] ...1.  123.456789: {text}"


def mark(word: str, number: int, pid: int = 7) -> str:
    return event(pid, f"tracing_mark_write: {word:5} {number:06d}")


def start(mm: str, write: bool, pid: int = 7) -> str:
    return event(pid, f"mmap_lock_start_locking: mm={mm} memcg_id=1 write={str(write).lower()}")


def got(mm: str, write: bool, pid: int = 7, success: bool = True) -> str:
    flags = f"write={str(write).lower()} success={str(success).lower()}"
    return event(pid, f"mmap_lock_acquire_returned: mm={mm} memcg_path=/a b {flags}")


def released(mm: str, write: bool, pid: int = 7) -> str:
    return event(pid, f"mmap_lock_released: mm={mm} memcg_id=1 write={str(write).lower()}")


def taken(mm: str, write: bool, pid: int = 7) -> list[str]:
    return [start(mm, write, pid), got(mm, write, pid), released(mm, write, pid)]


def fault(address: int, pid: int = 7, kind: str = "user") -> str:
    return event(pid, f"page_fault_{kind}: address=0x{address:x} ip=0x55 error_code=0x6")


def enter(pid: int = 7) -> str:
    return event(pid, "sys_enter: NR 9 (0, 1000, 3, 22, ffffffff, 0)")


def test_only_what_lies_between_the_markers_counts() -> None:
    lines = [
        "# tracer: nop",
        *taken("a", True),
        mark("begin", 0),
        mark("end", 0),
        *taken("a", True),
        mark("begin", 1),
        *taken("a", True),
        *taken("a", False),
        *taken("a", False),
        mark("end", 1),
        *taken("a", False),
    ]
    assert tally(lines, OWN) == {0: Z, 1: tallied(read=2, write=1)}


def test_a_downgrade_is_an_acquisition_without_a_start() -> None:
    lines = [
        mark("begin", 0),
        start("a", True),
        got("a", True),
        got("a", False),
        released("a", False),
        mark("end", 0),
    ]
    assert tally(lines, OWN) == {0: tallied(write=1, downgrade=1)}


def test_a_failed_try_is_no_acquisition() -> None:
    lines = [
        *taken("a", True),
        mark("begin", 0),
        start("a", False),
        got("a", False, success=False),
        *taken("a", False),
        mark("end", 0),
    ]
    assert tally(lines, OWN) == {0: tallied(read=1, read_failed=1)}


def test_other_address_spaces_do_not_count() -> None:
    lines = [*taken("a", True), mark("begin", 0), *taken("b", True), *taken("b", False, 9)]
    assert tally(lines) == {0: Z}


FORK = [
    start("a", True),
    got("a", True),
    start("b", True),
    got("b", True),
    released("b", True),
    released("a", True),
]


def test_each_segment_counts_the_address_space_of_the_process_that_marked_it() -> None:
    both = [*taken("a", False), *taken("b", True, 8), *taken("b", True, 8)]
    lines = [*taken("a", True), mark("begin", 0), *FORK, *both, mark("end", 0)]
    lines += [mark("begin", 1, 8), *both, mark("end", 1, 8)]
    assert tally(lines, OWN) == {0: tallied(read=1, write=1), 1: tallied(write=2)}


def test_threads_and_vfork_children_lock_their_parents_map() -> None:
    lines = [*taken("a", True), mark("begin", 0), *taken("a", True, 8), *taken("a", False, 9)]
    assert tally(lines, OWN) == {0: tallied(read=1, write=1)}


def test_an_exec_ends_it_and_addresses_are_used_again() -> None:
    # The child executes another program: that map is locked while nothing else is.
    child = [*taken("b", False, 8), *taken("c", True, 8), *taken("c", False, 8)]
    # And a later process, another child's program, gets the address of a map that is gone.
    later = [*taken("b", True, 9), *taken("b", False, 9)]
    lines = [*taken("a", True), *FORK, mark("begin", 0, 8), *child, *later, mark("end", 0, 8)]
    assert tally(lines, OWN) == {0: tallied(read=1)}


def test_what_a_foreign_fault_takes_is_told_apart() -> None:
    lines = [
        *taken("a", True),
        mark("begin", 0),
        fault(0x1000_0000),
        *taken("a", False),  # the program's own
        fault(0x7FFF_0000),
        *taken("a", False),  # of a page of the process itself
        fault(0x7FFF_1000),  # needs no lock ...
        enter(),
        *taken("a", False),  # ... so that this is the next system call's
        fault(0x7FFF_0000, kind="kernel"),
        *taken("a", False),
        *taken("a", False),
        mark("end", 0),
    ]
    assert tally(lines, OWN) == {0: tallied(read=3, user=1, foreign=3, foreign_read=2)}


def test_faults_are_not_known_where_their_events_are_not() -> None:
    assert tally([mark("begin", 0)], OWN, faults=False) == {0: Tally()}

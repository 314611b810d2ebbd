"""Results per process and in total, the default target, and foreign holders."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from traces import beside, change, waited, worker_trace

from mmreplay.predict import api
from mmreplay.predict.processes import foreign_holders, people
from mmreplay.report.text import prediction_text, replay_text
from mmreplay.report.writers import prediction_object, replay_object, to_json
from mmreplay.schema import OpKind, ProcFile
from mmreplay.trace.store import Trace

LOCK, OTHER_LOCK = 0xFFFF_8880_0000_10B8, 0xFFFF_8880_0000_20B8


@pytest.fixture(scope="module")
def two() -> Trace:
    """Three threads that map and fault all the time, beside one thread that does it longer."""
    return beside(worker_trace(threads=3, loops=20), worker_trace(threads=1, loops=90))


class TestReplay:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, two: Trace) -> Any:
        return api.replay(two, kernel="linux-6.1", cores=4)

    def test_processes_make_the_total(self, found: Any) -> None:
        busy, single = found.processes
        assert (busy.pid, busy.threads, busy.address_spaces) == (100, 3, (0,))
        assert (single.pid, single.threads, single.address_spaces) == (200, 1, (1,))
        assert (busy.ops, single.ops) == (3 * 20 * 10, 90 * 10)
        assert busy.ops + single.ops == found.ops
        assert busy.wait_ns + single.wait_ns == sum(row["wait_ns"] for row in found.by_op)
        assert max(busy.end_ns, single.end_ns) == found.makespan_ns

    def test_address_spaces_have_an_mmap_lock_each(self, found: Any, two: Trace) -> None:
        busy, single = found.processes
        assert busy.lock_wait_ns["mmap_lock"] > 0
        assert "mmap_lock" not in single.lock_wait_ns
        alone = api.replay(worker_trace(threads=1, loops=90), kernel="linux-6.1", cores=1)
        locks = found.locks["mmap_lock"]
        assert locks["write"] == 2 * (3 * 20 + 90)
        assert alone.locks["mmap_lock"]["write"] == 2 * 90

    def test_wait_is_the_sum_over_locks(self, found: Any) -> None:
        for process in found.processes:
            assert process.wait_ns == sum(process.lock_wait_ns.values())

    def test_the_target_is_where_threads_share_an_address_space(self, found: Any) -> None:
        assert [process.target for process in found.processes] == [True, False]

    def test_text_and_json_have_them(self, found: Any) -> None:
        text = replay_text(found)
        assert "2 processes" in text
        assert "other" in text
        assert max(map(len, text.splitlines())) <= 80
        shape = json.loads(to_json(replay_object(found)))
        assert [process["name"] for process in shape["processes"]] == ["worker-0", "other"]
        assert shape["foreign_holders"] == []

    def test_one_process_is_the_total(self) -> None:
        found = api.replay(worker_trace(), kernel="linux-6.1")
        (only,) = found.processes
        assert only.ops == found.ops
        assert only.target
        assert "processes" not in replay_text(found)


class TestPredict:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, two: Trace) -> Any:
        return api.predict(two, to_kernel="linux-6.18", cores=(1, 3), seeds=1)

    def test_the_group_that_counts_is_the_targets(self, found: Any) -> None:
        assert found.group == "worker-#"  # though "other" has more operations
        assert found.recorded_threads == 3

    def test_shares_per_process_and_kernel(self, found: Any) -> None:
        busy, single = found.processes
        assert (busy.pid, single.pid) == (100, 200)
        assert busy.lock_share["linux-6.1"]["mmap_lock"] > 0.05
        assert "mmap_lock" not in single.lock_share["linux-6.1"]
        row = next(
            r for r in found.rows if (r.kernel, r.cores, r.load) == ("linux-6.1", 3, "saturated")
        )
        assert busy.lock_share["linux-6.1"] == pytest.approx(row.lock_share)

    def test_text_and_json_have_them(self, found: Any) -> None:
        text = prediction_text(found)
        assert "each process" in text
        assert max(map(len, text.splitlines())) <= 80
        shape = json.loads(to_json(prediction_object(found)))
        assert [process["pid"] for process in shape["processes"]] == [100, 200]

    def test_without_shared_address_spaces_the_most_operations_count(self) -> None:
        singles = beside(worker_trace(threads=1, loops=9), worker_trace(threads=1, loops=30))
        assert people(singles).target == 200


class TestForeignHolders:
    def test_nobody(self, two: Trace) -> None:
        assert foreign_holders(two, people(two)) == ()

    def test_smaps_reader(self) -> None:
        """Reads of another process's smaps are operations on its address space."""
        trace = beside(worker_trace(threads=3), worker_trace(threads=1, loops=5))
        rows = trace.operations.collect()
        scraper = (pl.col("pid") == 200) & (pl.col("kind") == int(OpKind.MMAP))
        trace = change(
            Trace.in_memory(trace.header, {"operations": rows, "threads": trace.threads.collect()}),
            kind=pl.when(scraper).then(int(OpKind.PROC_READ)).otherwise("kind"),
            address_space=pl.when(scraper).then(0).otherwise("address_space"),
            flags=pl.when(scraper).then(int(ProcFile.SMAPS)).otherwise("flags"),
        )
        (holder,) = foreign_holders(trace, people(trace))
        assert (holder.pid, holder.target_pid, holder.count) == (200, 100, 5)
        assert "/proc" in holder.how
        assert holder.hold_ns == 5 * 1_900

    def test_shared_lock_address(self) -> None:
        trace = beside(
            worker_trace(threads=3),
            worker_trace(threads=1),
            waited(100, 0, LOCK, "read"),
            waited(101, 0, LOCK, "write"),
            waited(102, 0, LOCK, "read"),
            waited(200, 1, LOCK, "read", 7_000),
        )
        (holder,) = foreign_holders(trace, people(trace))
        assert (holder.pid, holder.target_pid) == (200, 100)
        assert (holder.count, holder.wait_ns, holder.hold_ns) == (1, 7_000, None)
        found = api.replay(trace, kernel="linux-6.1")
        assert found.foreign_holders == (holder,)
        assert "Foreign holders" in replay_text(found)

    def test_a_lock_that_only_writers_wait_for_is_no_mmap_lock(self) -> None:
        """i_mmap_rwsem and anon_vma are shared between processes by right."""
        trace = beside(
            worker_trace(threads=3),
            worker_trace(threads=1),
            waited(100, 0, OTHER_LOCK, "write"),
            waited(101, 0, OTHER_LOCK, "write"),
            waited(200, 1, OTHER_LOCK, "write"),
        )
        assert foreign_holders(trace, people(trace)) == ()

    def test_anonymised_addresses_tell_nothing(self) -> None:
        trace = beside(
            worker_trace(threads=3),
            worker_trace(threads=1),
            waited(100, 0, 0, "read"),
            waited(101, 0, 0, "write"),
            waited(200, 1, 0, "read"),
        )
        assert foreign_holders(trace, people(trace)) == ()

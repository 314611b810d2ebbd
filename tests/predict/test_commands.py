"""The commands on synthetic traces: contract, equality with the library, and bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from traces import change, worker_trace

from mmreplay.cli.main import main
from mmreplay.errors import UserError
from mmreplay.predict import api
from mmreplay.predict.prediction import ROW_KEYS
from mmreplay.report.text import duration, prediction_text, replay_text
from mmreplay.report.writers import TABLE_COLUMNS, prediction_object, replay_object, to_json
from mmreplay.schema import DurationKind, OpKind
from mmreplay.trace.store import Trace
from mmreplay.trace.writer import TraceWriter

REPLAY_KEYS = {
    "schema",
    "trace",
    "kernel",
    "machine",
    "cores",
    "threads",
    "ops",
    "scale_group",
    "window_ns",
    "makespan_ns",
    "throughput_ops_per_s",
    "useful_work_rate",
    "baseline_drift_ratio",
    "baseline_drift_note",
    "locks",
    "by_op",
    "blame",
    "processes",
    "foreign_holders",
    "notes",
    "engine",
}
LOCK_KEYS = {
    "read",
    "write",
    "downgrade",
    "read_wait_ns",
    "write_wait_ns",
    "read_hold_ns",
    "write_hold_ns",
}


def stored(trace: Trace, path: Path) -> Path:
    with TraceWriter(path) as writer:
        for table in ("operations", "threads"):
            writer.write(table, trace.table(table).collect())
        writer.close(trace.header)
    return path


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four threads that map, touch eight pages and unmap, thirty times over, half of it idle."""
    folder = tmp_path_factory.mktemp("traces")
    return stored(worker_trace(blocked_ns=2_000), folder / "workers.mmt")


def run(*words: object, capsys: pytest.CaptureFixture[str]) -> str:
    main([str(word) for word in words])
    return capsys.readouterr().out


def refused(*words: object, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command prints before it exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


class TestReplay:
    @pytest.fixture(scope="class")
    @classmethod
    def old(cls, workers: Path) -> dict[str, Any]:
        return replay_object(api.replay(workers, kernel="linux-6.1"))

    @pytest.fixture(scope="class")
    @classmethod
    def new(cls, workers: Path) -> dict[str, Any]:
        return replay_object(api.replay(workers, kernel="linux-6.18"))

    def test_exactly_the_keys_of_the_contract(self, old: dict[str, Any]) -> None:
        assert set(old) == REPLAY_KEYS
        assert set(old["engine"]) == {"wall_s", "ops_per_s"}
        assert set(old["locks"]["mmap_lock"]) == LOCK_KEYS
        assert set(old["locks"]["vma_lock"]) == {"read", "mark", "fallback"}
        for name, lock in old["locks"].items():
            if name != "vma_lock":
                assert set(lock) == LOCK_KEYS, name
        for row in old["by_op"]:
            assert set(row) == {
                "op",
                "count",
                "busy_ns",
                "wait_ns",
                "delay_p50_ns",
                "delay_p99_ns",
            }
        for row in old["blame"]:
            assert set(row) == {"holder_op", "waiter_op", "wait_ns"}
        json.loads(to_json(old))

    def test_every_operation_is_replayed_once(self, old: dict[str, Any]) -> None:
        assert old["ops"] == 4 * 30 * 10
        counts = {row["op"]: row["count"] for row in old["by_op"]}
        assert counts == {"fault": 4 * 30 * 8, "mmap": 4 * 30, "munmap": 4 * 30}
        assert old["threads"] == 4
        assert old["cores"] == 2

    def test_lock_counts_are_those_of_the_kernels(
        self, old: dict[str, Any], new: dict[str, Any]
    ) -> None:
        faults, calls = 4 * 30 * 8, 4 * 30
        before, after = old["locks"]["mmap_lock"], new["locks"]["mmap_lock"]
        # 6.1: every fault reads; mmap and munmap write, munmap downgrades.
        assert before["write"] == after["write"] == 2 * calls
        assert before["downgrade"] == after["downgrade"] == calls
        assert before["read"] == faults
        # 6.18: only the first write to a VMA without an anon_vma reads.
        assert after["read"] < faults / 4
        assert new["locks"]["vma_lock"]["read"] == faults
        assert old["locks"]["vma_lock"] == {
            "read": 0,
            "mark": 0,
            "fallback": old["locks"]["vma_lock"]["fallback"],
        }

    def test_waits_are_charged_completely(self, old: dict[str, Any]) -> None:
        charged = sum(row["wait_ns"] for row in old["blame"])
        assert charged == sum(row["wait_ns"] for row in old["by_op"])

    def test_same_seed_same_answer(self, workers: Path, old: dict[str, Any]) -> None:
        again = replay_object(api.replay(workers, kernel="linux-6.1"))
        assert {k: v for k, v in again.items() if k != "engine"} == {
            k: v for k, v in old.items() if k != "engine"
        }
        other = replay_object(api.replay(workers, kernel="linux-6.1", seed=7))
        assert other["makespan_ns"] != old["makespan_ns"]
        assert other["locks"]["mmap_lock"]["write"] == old["locks"]["mmap_lock"]["write"]

    def test_command_is_the_library_call(
        self, workers: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wanted = replay_object(
            api.replay(workers, kernel="linux-6.18", cores=3, load="saturated", seed=5)
        )
        words = ("replay", workers, "--kernel", "linux-6.18", "--cores", 3)
        words += ("--load", "saturated", "--seed", 5, "--format", "json")
        printed = json.loads(run(*words, capsys=capsys))
        del wanted["engine"], printed["engine"]
        assert printed == json.loads(to_json(wanted))

    def test_text_is_narrow_and_names_the_lock(
        self, workers: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = run("replay", workers, "--kernel", "linux-6.1", capsys=capsys)
        assert max(map(len, text.splitlines())) <= 80
        assert "mmap_lock" in text
        assert "drift" in text

    def test_one_thread_can_be_replayed(self) -> None:
        found = api.replay(worker_trace(threads=1), kernel="linux-6.1")
        assert found.locks["mmap_lock"]["read_wait_ns"] == 0

    def test_without_durations_the_drift_is_null_with_a_reason(self) -> None:
        found = api.replay(worker_trace(durations=False), kernel="linux-6.1")
        assert found.baseline_drift_ratio is None
        assert "durations" in found.baseline_drift_note

    def test_unknown_kernel_of_the_recording_only_costs_the_drift(self) -> None:
        found = api.replay(worker_trace(kernel=None), kernel="linux-6.1")
        assert found.baseline_drift_ratio is None
        assert "kernel" in found.baseline_drift_note

    def test_losses_refuse_rates_but_not_counts(self) -> None:
        trace = worker_trace()
        trace.header.lost_events = 1_000
        found = api.replay(trace, kernel="linux-6.1")
        assert found.throughput_ops_per_s is None
        assert found.ops == 4 * 30 * 10


class TestPredict:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, workers: Path) -> Any:
        return api.predict(workers, to_kernel="linux-6.18", cores=(1, 2, 4))

    def test_rows_have_the_keys_of_the_contract(self, found: Any) -> None:
        shape = prediction_object(found)
        assert set(ROW_KEYS) <= set(shape["rows"][0])
        assert "baseline_drift_note" in shape
        assert len(shape["rows"]) == 2 * 3 * 2
        json.loads(to_json(shape))

    def test_from_defaults_to_the_recorded_kernel(self, found: Any) -> None:
        assert found.from_kernel == "linux-6.1"

    def test_speedups_are_consistent(self, found: Any) -> None:
        for row in found.rows:
            if row.kernel == "linux-6.1":
                assert (row.speedup, row.speedup_lower) == (1.0, None)
                continue
            assert row.speedup_lower <= row.speedup <= row.speedup_upper
            assert row.speedup_from_locking * row.speedup_from_costs == pytest.approx(row.speedup)
            old = next(
                r
                for r in found.rows
                if r.kernel == "linux-6.1" and (r.cores, r.load) == (row.cores, row.load)
            )
            ratio = row.useful_work_rate / old.useful_work_rate
            assert row.speedup == pytest.approx(ratio, rel=0.05)

    def test_lock_limits_the_old_kernel_and_not_the_new(self, found: Any) -> None:
        at = {(r.kernel, r.cores, r.load): r for r in found.rows}
        old, new = at["linux-6.1", 4, "saturated"], at["linux-6.18", 4, "saturated"]
        assert old.limiting_lock == "mmap_lock"
        assert new.lock_share["mmap_lock"] < old.lock_share["mmap_lock"]
        assert new.speedup > 1.1
        assert at["linux-6.18", 1, "saturated"].speedup == pytest.approx(1, abs=0.15)

    def test_basis(self, found: Any) -> None:
        at = {(r.kernel, r.cores, r.load): r.basis for r in found.rows}
        assert at["linux-6.1", 2, "recorded"] == "measured"
        assert at["linux-6.18", 2, "recorded"] == "interpolated"
        assert at["linux-6.1", 1, "recorded"] == "interpolated"
        assert at["linux-6.1", 4, "recorded"] == "extrapolated"

    def test_idle_time_costs_throughput_where_nobody_waits(self, found: Any) -> None:
        # Only on one core: elsewhere idle time can relieve a lock that is past its best.
        at = {(r.kernel, r.cores, r.load): r.useful_work_rate for r in found.rows}
        for kernel in ("linux-6.1", "linux-6.18"):
            assert at[kernel, 1, "recorded"] <= at[kernel, 1, "saturated"] * 1.02

    def test_text_says_the_answer_first(self, found: Any) -> None:
        text = prediction_text(found)
        assert max(map(len, text.splitlines())) <= 80
        assert text.startswith(("On 4 cores, linux-6.18 would", "Not to be trusted"))
        assert text.index("Baseline drift") < text.index("operations per second")
        assert "extrapolated" in text
        assert "memory map" in text

    def test_kernel_against_itself_gains_nothing(self, workers: Path) -> None:
        found = api.predict(workers, to_kernel="linux-6.1", cores=(2,), load="saturated")
        assert {row.speedup for row in found.rows} == {1.0}
        assert "no faster" in found.headline
        assert any("is compared with itself: --from" in note for note in found.notes)

    def test_few_operations_are_said_first(self, found: Any) -> None:
        few = worker_trace(threads=2, loops=3)
        short = api.predict(few, to_kernel="linux-6.18", cores=(2,), load="saturated", seeds=1)
        assert short.headline.startswith("From only 60 operations: On 2 cores,")
        assert any(note.startswith("60 operations in") for note in short.notes)
        assert "From only" not in found.headline
        assert not any("tell little" in note for note in found.notes)

    def test_command_is_the_library_call(
        self, workers: Path, found: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ("predict", workers, "--to", "linux-6.18", "--cores", "1,2,4")
        printed = json.loads(run(*words, "--format", "json", capsys=capsys))
        wanted = json.loads(to_json(prediction_object(found)))
        del wanted["engine"], printed["engine"]
        assert printed == wanted

    def test_csv_and_parquet_hold_the_rows(
        self, workers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["predict", workers, "--to", "linux-6.18", "--cores", 2, "--seeds", 1]
        lines = list(csv.DictReader(io.StringIO(run(*words, "--format", "csv", capsys=capsys))))
        assert set(ROW_KEYS) <= set(lines[0])
        file = tmp_path / "rows.parquet"
        assert run(*words, "--format", "parquet", "-o", file, capsys=capsys) == ""
        table = pl.read_parquet(file)
        assert tuple(table.columns) == TABLE_COLUMNS
        assert [row["kernel"] for row in lines] == table["kernel"].to_list()
        assert list(tmp_path.iterdir()) == [file]

    def test_threads_scale_the_group_out(self) -> None:
        found = api.predict(
            worker_trace(threads=2),
            to_kernel="linux-6.18",
            cores=(2, 4),
            threads="cores",
            load="saturated",
            seeds=1,
        )
        assert [(row.cores, row.threads) for row in found.rows if row.kernel == "linux-6.18"] == [
            (2, 2),
            (4, 4),
        ]
        rates = [row.throughput_ops_per_s for row in found.rows if row.kernel == "linux-6.18"]
        assert rates[1] > 1.3 * rates[0]

    def test_each_thread_count_is_named(self) -> None:
        found = api.predict(
            worker_trace(), to_kernel="linux-6.18", cores=(1, 2), threads=(2, 6), seeds=1
        )
        text = " ".join(prediction_text(found).split())
        assert re.search(r"On 2 cores with 6 threads, linux-6\.18 would", text)
        assert "Who blocks whom on 2 cores with 6 threads" in text
        for threads in (2, 6):
            assert f"The recorded load with {threads} threads is the same" in text
            assert f"takes at the recorded load with {threads} threads, " in text
            assert f"locks at the saturated load with {threads} threads, " in text

    def test_drift_out_of_bounds_is_said_first(self) -> None:
        slow = change(worker_trace(), service_ns=pl.col("service_ns"), wait_ns=pl.lit(40_000))
        found = api.predict(slow, to_kernel="linux-6.18", cores=(2,), load="recorded", seeds=1)
        assert not found.drift.trusted
        assert found.headline.startswith("Not to be trusted")

    def test_call_chains_are_a_warning(self, found: Any) -> None:
        plain = worker_trace()
        rows = plain.operations.head(1).select("begin_ns", "seq").collect()
        chains = rows.with_columns(stack=pl.lit(1, pl.UInt32))
        tables = {"operations": plain.operations.collect(), "threads": plain.threads.collect()}
        traced = Trace.in_memory(plain.header, {**tables, "callchains": chains})
        told = api.predict(traced, to_kernel="linux-6.18", cores=(2,), load="recorded", seeds=1)
        assert any(note.startswith("Call chains were recorded") for note in told.notes)
        assert not any(note.startswith("Call chains") for note in found.notes)

    def test_no_faults_is_a_warning(self) -> None:
        for asked, how in (("none", "To record them: perf record"), ("measured", "takes memory.")):
            calls = worker_trace(faults=False, fault_duration=asked)
            found = api.replay(calls, kernel="linux-6.18")
            (note,) = (note for note in found.notes if "no page faults" in note)
            assert how in note


KERNELS = ("--to", "linux-6.18")


def without_results(trace: Trace) -> Trace:
    """As if sys_exit_* had not been recorded."""
    call = ~pl.col("kind").is_in([int(OpKind.FAULT_USER)])
    mmap = pl.col("kind") == int(OpKind.MMAP)
    return change(
        trace,
        address=pl.when(~mmap).then("address"),
        **{name: pl.when(~call).then(name) for name in ("result", "service_ns", "wait_ns")},
        duration_kind=pl.when(call).then(int(DurationKind.END_UNSEEN)).otherwise("duration_kind"),
    )


def only_lives(trace: Trace) -> Trace:
    """Threads that begin and end, and nothing between."""
    return change(trace, kind=pl.lit(int(OpKind.CLONE)))


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ((*KERNELS, "--cores", "0"), "0 cores"),
            ((*KERNELS, "--cores", "-1"), "-1 cores"),
            ((*KERNELS, "--cores", "1000000000"), "1000000000 cores"),
            ((*KERNELS, "--cores", ""), "empty"),
            ((*KERNELS, "--cores", "8-1"), "backwards"),
            ((*KERNELS, "--cores", "4", "--threads", "0"), "0 threads"),
            ((*KERNELS, "--cores", "4", "--threads", "9999"), "9999 threads"),
            ((*KERNELS, "--cores", "4", "--threads", "many"), "many"),
            ((*KERNELS, "--cores", "two"), "two"),
            ((*KERNELS, "--cores", "1-8:x1"), "never grows"),
            ((*KERNELS, "--cores", "4", "--seeds", "0"), "0 seeds"),
            ((*KERNELS, "--cores", "4", "--load", "satured"), "saturated"),
            ((*KERNELS, "--cores", "4", "--placement", "compct"), "compact"),
            ((*KERNELS, "--cores", "4", "--format", "jsn"), "json"),
            ((*KERNELS, "--cores", "4", "--format", "parquet"), "-o FILE"),
            ((*KERNELS, "--cores", "4", "--costs", "tracee"), "trace"),
            ((*KERNELS, "--cores", "4", "--machine", "generic-servr"), "generic-server"),
            ((*KERNELS, "--cores", "4", "--scale-group", "workr"), "worker-#"),
            (("--to", "linux-x", "--cores", "4"), "models list"),
            (("--to", "windows", "--cores", "4"), "windows"),
            (("--from", "linux-2.6", *KERNELS, "--cores", "4"), "older"),
            ((*KERNELS, "--core", "4"), "--cores"),
        ],
    )
    def test_predict(
        self,
        words: tuple[str, ...],
        says: str,
        workers: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert says in refused("predict", workers, *words, capsys=capsys)

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("--kernel", "linux-6.1", "--cores", "0"), "0 cores"),
            (("--kernel", "linux-6.1", "--cores", "1000000000"), "1000000000 cores"),
            (("--kernel", "linux-6.1", "--threads", "-3"), "-3 threads"),
            (("--kernel", "linux-6.1", "--seed", "-3"), "seed -3"),
            (("--kernel", "linux-6.1", "--format", "csv"), "json"),
            (("--kernel", "no-such-model"), "no-such-model"),
            (("--kernel", "linux-6.1", "--scale-group", "nobody"), "nobody"),
        ],
    )
    def test_replay(
        self,
        words: tuple[str, ...],
        says: str,
        workers: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert says in refused("replay", workers, *words, capsys=capsys)

    def test_no_such_trace(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("predict", tmp_path / "no.mmt", *KERNELS, "--cores", 1)
        assert "no.mmt" in refused(*words, capsys=capsys)

    def test_unwritable_output_leaves_nothing(
        self, workers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ("replay", workers, "--kernel", "linux-6.1", "-o", tmp_path / "no" / "x.json")
        assert "x.json" in refused(*words, capsys=capsys)
        assert list(tmp_path.iterdir()) == []

    def test_a_pipe_is_not_replaced_by_a_file(
        self, workers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        for command in (
            ("replay", workers, "--kernel", "linux-6.1"),
            ("predict", workers, *KERNELS, "--cores", 1, "--format", "csv"),
            ("export", workers, "--format", "csv"),
        ):
            assert "not a file" in refused(*command, "-o", pipe, capsys=capsys)
        # may lead to a plain file, but is no name of it
        for name in ("/dev/stdout", "/proc/self/fd/1"):
            words = ("replay", workers, "--kernel", "linux-6.1", "-o", name)
            assert "not a file" in refused(*words, capsys=capsys)
        assert pipe.is_fifo()
        assert list(tmp_path.iterdir()) == [pipe]

    @pytest.mark.parametrize(
        ("trace", "says"),
        [
            (lambda: worker_trace(loops=0), "no memory-map operations"),
            (lambda: worker_trace(threads=1), "one thread"),
            (lambda: worker_trace(sampling=True), "sampled"),
            (lambda: worker_trace(durations=False, times=False), "no durations"),
            (lambda: worker_trace(kernel=None), "--from"),
            (lambda: worker_trace(faults=False, fault_duration="none"), "no page-fault events"),
            (lambda: without_results(worker_trace()), "no result"),
            (lambda: only_lives(worker_trace()), "no memory-map operations"),
            (
                lambda: change(worker_trace(), unattributed_ns=pl.lit(5_000)),
                "could not be split",
            ),
        ],
        ids=[
            "empty",
            "one thread",
            "sampled",
            "no times",
            "no kernel",
            "no faults",
            "no syscall exits",
            "no operations",
            "unattributed",
        ],
    )
    def test_traces(self, trace: Any, says: str) -> None:
        with pytest.raises(UserError) as error:
            api.predict(trace(), to_kernel="linux-6.18", cores=(2,))
        assert says in error.value.line()
        if says not in ("--from",):
            assert "perf record" in error.value.line() or "record" in error.value.fix

    def test_more_threads_than_can_be_planned(self) -> None:
        trace = worker_trace(threads=2, loops=4_000)
        for call in (
            lambda: api.predict(trace, to_kernel="linux-6.18", cores=(2,), threads=(8_000,)),
            lambda: api.replay(trace, kernel="linux-6.18", threads=8_000),
        ):
            with pytest.raises(UserError) as error:
                call()
            assert error.value.where == "--threads"
            assert "at most about 1,250" in error.value.fix

    def test_losses(self) -> None:
        trace = worker_trace()
        trace.header.lost_events = 1_000
        with pytest.raises(UserError, match="lost"):
            api.predict(trace, to_kernel="linux-6.18", cores=(2,))

    def test_a_damaged_time_makes_no_replay_of_years(self) -> None:
        trace = worker_trace()
        trace.header.span_ns = 472 * 24 * 3600 * 10**9
        for call in (
            lambda: api.predict(trace, to_kernel="linux-6.18", cores=(2,)),
            lambda: api.replay(trace, kernel="linux-6.18"),
        ):
            with pytest.raises(UserError, match="472 days"):
                call()

    def test_library_checks_like_the_command(self, workers: Path) -> None:
        for cores in ((), (0,), (-1,), (10**9,)):
            with pytest.raises(UserError):
                api.predict(workers, to_kernel="linux-6.18", cores=cores)


def test_texts_are_made_from_the_same_object(workers: Path) -> None:
    found = api.replay(workers, kernel="linux-6.1")
    text = " ".join(replay_text(found).split())
    assert f"{found.ops:,}" in text
    # Not the operations over the time to the end: who works, and how long, is said beside.
    told = re.search(r'Group "(.*)": .* operations/s, .* through \((.*?)\)\.', text)
    assert told is not None
    assert told.groups() == (found.group, duration(found.window_ns))
    assert replay_object(found)["scale_group"] == found.group
    assert replay_object(found)["notes"] == list(found.notes)
    refused = replace(found, by_op=({**found.by_op[0], "op": "none"},))
    assert "(no lock)" in replay_text(refused)

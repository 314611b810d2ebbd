"""``calibrate`` and ``accuracy`` as somebody uses them, on runs whose true machine is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmreplay.cli.main import main
from mmreplay.fit import api, forward
from mmreplay.fit.forward import Measured, prepare_case
from mmreplay.fit.parameters import Parameters
from mmreplay.hardware.runs import Runs, write_runs
from mmreplay.locking.loader import load_model
from mmreplay.machine.loader import load_machine, read_profile
from mmreplay.machine.profile import Machine, Topology
from mmreplay.schema import RUNS
from mmreplay.workloads.definition import list_probes, load_workload

NAMES = ("brk1", "faulters-and-mappers", "mmap1", "page_fault1")
FACTS = {
    "kernel": "6.18.44",
    "cpu_model": "A test CPU",
    "cpu_id": "TestVendor,1,2,3",
    "hypervisor": "KVM",
    "cpus_online": 2,
    "cpus_allowed": 2,
    "sockets": 1,
    "cores": 2,
    "threads_per_core": 1,
    "last_level_cache_shared_by": "0-1",
    "thp": "madvise",
    "probes": [
        {"name": "costs.syscall", "value": 374.0, "spread": 0.02, "n": 15},
        {"name": "frequency.2", "value": 0.9, "spread": 0.02, "n": 15},
    ],
}


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Short traces: this is about what is done with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "OPS_PER_THREAD", 3_000)
        yield


@pytest.fixture(scope="module")
def truth() -> Machine:
    """The shipped guest, twice as slow, and a tenth slower where both CPUs compute."""
    prior, _ = api.prior_for(Runs([], FACTS), "epyc-guest-2cpu")
    parameters = Parameters.of(prior, {})
    position = parameters.start
    position[-1] = 0.7
    return replace(parameters.machine_at(position), frequency=((1, 1.0), (2, 0.9)))


def row(workload: str, path: str, threads: int, repetition: int, rate: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in RUNS.columns:
        found[column.name] = None if column.nullable else "" if column.dtype == "String" else 0
    return found | {
        "workload": workload,
        "path": path,
        "threads": threads,
        "placement": "pinned",
        "repetition": repetition,
        "ops_per_s": rate,
        "fairness": 1.0,
    }


@pytest.fixture(scope="module")
def runs(truth: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_model("linux-6.18")
    rows = []
    for name in NAMES:
        for path in ("vma", "mmap_lock"):
            for threads in (1, 2, 4):
                if name == "faulters-and-mappers" and threads == 1:
                    continue
                case = prepare_case(load_workload(name), path, threads, model, thp="madvise")  # type: ignore[arg-type]
                for repetition in range(3):
                    rate = case.rate(truth, 10 + repetition)
                    rows.append(row(name, path, threads, repetition, rate))
    path = tmp_path_factory.mktemp("runs") / "runs.parquet"
    write_runs(Runs(rows, FACTS, created="2026-11-26"), path)
    return path


Json = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Json:
    def call(*words: object) -> dict[str, Any]:
        capfd.readouterr()
        main([*map(str, words), "--format", "json"])
        found = json.loads(capfd.readouterr().out)
        assert isinstance(found, dict)
        return found

    return call


def test_half_of_the_workloads_predict_the_others(runs: Path, run: Json, tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    found = run("calibrate", runs, "--half", "first", "-o", profile, "--prior", "epyc-guest-2cpu")
    assert found["before"]["median_abs_error"] > 0.3
    assert found["after"]["median_abs_error"] < 0.05
    assert {p["workload"] for p in found["points"]} == {"brk1", "mmap1"}
    assert max(p["threads"] for p in found["points"]) == 2  # not more threads than CPUs
    machine = read_profile(profile)
    assert machine.fitted_on == ("brk1", "mmap1")
    assert machine.cpu_ids == ("TestVendor,1,2,3",)
    assert (machine.n_cpus, machine.topology_basis) == (2, "measured")
    assert machine.frequency == ((1, 1.0), (2, 0.9))

    judged = run("accuracy", runs, profile, "--held-out")
    assert {p["workload"] for p in judged["points"]} == {"faulters-and-mappers", "page_fault1"}
    for group in judged["groups"]:
        assert set(group) == {
            "machine", "path", "load_group", "regime", "n", "median_abs_error", "p90_abs_error",
            "bias",
        }  # fmt: skip
        assert group["load_group"] in ("n_le_c", "n_gt_c")
    near = [g for g in judged["groups"] if g["load_group"] == "n_le_c" and g["regime"] == "all"]
    assert {g["path"] for g in near} == {"vma", "mmap_lock"}
    assert all(g["median_abs_error"] < 0.35 for g in near)
    for gain in judged["gains"]:
        assert {"machine", "workload", "threads", "measured", "simulated"} <= set(gain)


def test_all_of_them_are_met(runs: Path, run: Json, tmp_path: Path) -> None:
    found = run("calibrate", runs, "-o", tmp_path / "all.toml", "--prior", "epyc-guest-2cpu")
    assert found["after"]["median_abs_error"] < 0.03
    assert found["after"]["p90_abs_error"] < 0.1
    by_name = {n["name"]: n for n in found["numbers"]}
    assert by_name["costs.fork_common"]["basis"] == "assumed"
    assert not by_name["costs.fork_common"]["identified"]
    assert by_name["costs.syscall"]["identified"] or by_name["costs.syscall"]["basis"] == "measured"


def test_text_picture_and_parquet(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import polars as pl

    svg, table = tmp_path / "a.svg", tmp_path / "a.parquet"
    main(["accuracy", str(runs), "epyc-guest-2cpu", "--plot", str(svg)])
    text = capfd.readouterr().out
    assert "furthest off" in text
    assert "> CPUs" in text
    assert svg.read_text().count("<circle") > 20
    main(["accuracy", str(runs), "epyc-guest-2cpu", "--format", "parquet", "-o", str(table)])
    rows = pl.read_parquet(table)
    assert len(rows) == 22
    assert set(rows["load_group"]) == {"n_le_c", "n_gt_c"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("accuracy", "RUNS"), "which machine"),
        (("accuracy", "RUNS", "nobody"), "nobody"),
        (("accuracy", "RUNS", "epyc-guest-2cpu", "--only", "pagefault1"), "page_fault1"),
        (("accuracy", "RUNS", "epyc-guest-2cpu", "--format", "parquet"), "-o"),
        (("accuracy", "none.parquet", "epyc-guest-2cpu"), "no such file"),
        (("calibrate", "RUNS", "-o", "here.yaml"), ".toml"),
        (("calibrate", "RUNS", "--seeds", "0"), "--seeds"),
        (("calibrate", "RUNS", "--only", "brk1", "--half", "first"), "--half"),
        (("calibrate", "RUNS", "-o", "no/where/m.toml"), "no such directory"),
        (("calibrate", "RUNS", "--prior", "epyc"), "epyc"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], says: str, runs: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([str(runs) if word == "RUNS" else word for word in words])
    assert caught.value.code == 2
    error = capfd.readouterr().err.strip()
    assert says in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_profile_is_not_written_over(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.toml"
    kept.write_text("mine")
    with pytest.raises(SystemExit):
        main(["calibrate", str(runs), "-o", str(kept)])
    assert kept.read_text() == "mine"
    assert "--force" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("facts", "topology"),
    [
        ({"cpus_allowed": 16, "sockets": 1, "threads_per_core": 2,
          "last_level_cache_shared_by": "0-7"}, Topology(1, 2, 4, 2)),
        ({"cpus_allowed": 2, "sockets": 1, "threads_per_core": 1,
          "last_level_cache_shared_by": "0-1"}, Topology(1, 1, 2, 1)),
        ({"cpus_allowed": 64, "sockets": 2, "threads_per_core": 1,
          "last_level_cache_shared_by": "0,2,4,6"}, Topology(2, 8, 4, 1)),
        ({"cpus_online": 3, "last_level_cache_shared_by": None}, Topology(1, 1, 3, 1)),
    ],
)  # fmt: skip
def test_topology_of_the_provenance(facts: dict[str, Any], topology: Topology) -> None:
    assert api.topology_of(facts) == topology


def test_probes_are_fitted_with_either_half_and_are_in_none() -> None:
    names = [*NAMES, *list_probes()]
    points = [Measured(n, "vma", 1, "pinned", 1.0, 0.1, (1.0,)) for n in names]
    halves = [api.half_of(points, half) for half in api.HALVES]
    assert sorted(halves[0] + halves[1]) == sorted(NAMES)


def test_an_unknown_guest_begins_with_a_measured_guest() -> None:
    prior, _ = api.prior_for(Runs([], FACTS), None)
    assert not prior.assumed
    bare, _ = api.prior_for(Runs([], FACTS | {"hypervisor": "none"}), None)
    assert bare.name == "generic-server"
    assert load_machine("generic-server").n_cpus != bare.n_cpus == 2


def test_what_ships_is_judged_by_profiles_that_did_not_see_it(run: Json) -> None:
    found = run("accuracy")
    assert found["points"]
    assert not any(point["trained"] for point in found["points"])
    machines = {point["machine"] for point in found["points"]}
    assert machines == {name for name, _ in api.shipped_runs()}
    for name in machines:
        halves = api.held_out(name)
        assert len(halves) == 2
        assert not set(halves[0].fitted_on) & set(halves[1].fitted_on)
    near = [g for g in found["groups"] if g["load_group"] == "n_le_c" and g["regime"] == "all"]
    assert {g["path"] for g in near} == {"vma", "mmap_lock"}
    assert sum(g["n"] for g in near) > 60
    # a change detector, far above what docs/accuracy.md says
    assert all(g["median_abs_error"] < 0.3 for g in near)
    assert found["gains"]
    assert any(g["regime"] == "past" for g in found["groups"] if g["load_group"] == "n_gt_c")


def test_a_few_published_rows_are_fitted_like_runs(
    truth: Machine, run: Json, tmp_path: Path
) -> None:
    """will-it-scale's CSV of a machine that nobody here has, on a kernel before per-VMA locks."""
    model = load_model("linux-6.1")
    lines = ["tasks,processes,processes_idle,threads,threads_idle,linear", "0,0,100,0,100,0"]
    for tasks in (1, 2):
        case = prepare_case(load_workload("page_fault1"), "vma", tasks, model, thp="madvise")
        lines.append(f"{tasks},1000,0,{case.rate(truth, 10):.0f},0,1000")
    csv, mapping = tmp_path / "page_fault1.csv", tmp_path / "told.toml"
    csv.write_text("\n".join(lines) + "\n")
    mapping.write_text(
        '[machine]\nkernel = "6.1"\ncpu_model = "Theirs"\ncpus_online = 2\nsource = "a table"\n'
    )
    published, profile = tmp_path / "published.parquet", tmp_path / "theirs.toml"
    main(["import", str(csv), "--mapping", str(mapping), "-o", str(published)])
    found = run(
        "calibrate", published, "--only", "page_fault1", "-o", profile, "--prior", "epyc-guest-2cpu"
    )
    assert [p["threads"] for p in found["points"]] == [1, 2]
    assert found["before"]["median_abs_error"] > 0.3
    assert found["after"]["median_abs_error"] < 0.1
    by_name = {n["name"]: n for n in found["numbers"]}
    assert not by_name["costs.fork_common"]["identified"]
    assert read_profile(profile).cpu_model == "Theirs"

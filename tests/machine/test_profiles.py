"""Machine profiles: the loader's promises, matching, topology, and what is shipped."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.cli.machines import command
from mmreplay.errors import UserError
from mmreplay.locking import list_models
from mmreplay.locking.vocabulary import COSTS, SLEEPS
from mmreplay.machine import extrapolated, list_machines, load_machine, match_machine
from mmreplay.machine.profile import Topology
from mmreplay.machine.topology import cpu_arrays
from mmreplay.resources import models_dir

SHIPPED = ("epyc-guest-2cpu", "epyc-zen4-guest-2cpu", "generic-server")


def profile_text() -> str:
    return (models_dir("machines") / "epyc-guest-2cpu.toml").read_text()


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = profile_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    return path


def zap_line() -> str:
    return next(line for line in profile_text().splitlines() if line.startswith("zap = "))


def with_zap(tmp_path: Path, number: str) -> Path:
    return edited(tmp_path, zap_line(), f"zap = {number}")


# -- what is shipped ---------------------------------------------------------------------


def test_both_profiles_are_listed() -> None:
    assert set(SHIPPED) <= set(list_machines())


@pytest.mark.parametrize("name", SHIPPED)
def test_every_cost_of_the_vocabulary_has_a_number(name: str) -> None:
    machine = load_machine(name)
    assert set(COSTS) - set(machine.costs) == set()
    assert set(machine.costs) - set(COSTS) == set()
    assert set(machine.sleeps) == set(SLEEPS)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_cost_of_every_shipped_model_has_a_number(name: str) -> None:
    machine = load_machine(name)
    for model in list_models():
        assert set(model.costs) - set(machine.costs) - set(model.default_costs) == set()
        assert set(model.sleeps) <= set(machine.sleeps)


def test_the_generic_profile_claims_no_measurement() -> None:
    machine = load_machine("generic-server")
    assert machine.assumed
    assert machine.topology_basis == "assumed"
    assert {n.basis for n in machine.costs.values()} == {"assumed"}


def test_the_measured_profile_says_what_was_measured() -> None:
    machine = load_machine("epyc-guest-2cpu")
    assert not machine.assumed
    assert machine.n_cpus == 2
    bases = {n.basis for n in machine.costs.values()}
    assert bases == {"measured", "fitted", "assumed"}
    assert all(n.source for n in machine.costs.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_distances_do_not_shrink_with_distance(name: str) -> None:
    m = load_machine(name)
    levels = [m.atomic_ns, m.line_smt_ns, m.line_llc_ns, m.line_socket_ns, m.line_cross_ns]
    values = [n.value for n in levels]
    assert values == sorted(values)


# -- the loader --------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-3", "nan", "inf", "-inf", "true", '"12"'])
def test_bad_values_are_refused_with_file_and_key(tmp_path: Path, value: str) -> None:
    path = with_zap(tmp_path, f'{{ value = {value}, basis = "measured", source = "x" }}')
    with pytest.raises(UserError) as error:
        load_machine(path)
    assert "mine.toml" in error.value.line()
    assert "costs.zap" in error.value.line()
    assert "\n" not in error.value.line()


@pytest.mark.parametrize(
    "number",
    [
        "12.0",
        '{ value = 1.0, basis = "measured" }',
        '{ value = 1.0, source = "x" }',
        '{ value = 1.0, basis = "guessed", source = "x" }',
        '{ value = 1.0, basis = "measured", source = "" }',
        '{ value = 1.0, basis = "measured", source = "x", spread = -1.0 }',
        '{ value = 1.0, basis = "measured", source = "x", spread = nan }',
    ],
)
def test_a_number_needs_value_basis_and_source(tmp_path: Path, number: str) -> None:
    with pytest.raises(UserError, match="zap"):
        load_machine(with_zap(tmp_path, number))


@pytest.mark.parametrize(
    ("old", "new", "meant"),
    [
        ("waker_ns =", "wakr_ns =", "waker_ns"),
        ("[shootdown]", "[shotdown]", "shootdown"),
        ("cores_per_cache =", "cores_per_cashe =", "cores_per_cache"),
        ("assumed = false", "asumed = false", "assumed"),
    ],
)
def test_unknown_keys_name_the_closest_one(tmp_path: Path, old: str, new: str, meant: str) -> None:
    with pytest.raises(UserError) as error:
        load_machine(edited(tmp_path, old, new))
    line = error.value.line()
    assert meant in line
    assert "mine.toml" in line


def test_topology_counts_are_whole_and_bounded(tmp_path: Path) -> None:
    for bad in ("1.5", "1000000000"):
        text = f'threads_per_core = {{ value = {bad}, basis = "assumed", source = "x" }}'
        old = next(x for x in profile_text().splitlines() if x.startswith("threads_per_core"))
        with pytest.raises(UserError, match="topology"):
            load_machine(edited(tmp_path, old, text))


def test_a_newer_schema_a_broken_file_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="schema"):
        load_machine(edited(tmp_path, "schema = 1", "schema = 2"))
    with pytest.raises(UserError, match="TOML"):
        load_machine(edited(tmp_path, "[costs]", "[costs"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="TOML"):
        load_machine(binary)
    with pytest.raises(UserError, match="cannot be read"):
        load_machine(tmp_path / "absent.toml")
    with pytest.raises(UserError, match="epyc-guest-2cpu"):
        load_machine("epyc-gest-2cpu")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_profile_is_a_user_error_or_loads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(profile_text().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "mine.toml"
    path.write_bytes(bytes(raw))
    try:
        machine = load_machine(path)
    except UserError as error:
        assert "mine.toml" in error.line()
    else:
        assert all(n.value > 0 for n in machine.costs.values())


# -- matching ----------------------------------------------------------------------------


def test_match_by_cpu_id_ignores_the_stepping() -> None:
    machine, note = match_machine("some name", "AuthenticAMD,25,1,0")
    assert machine.name == "epyc-guest-2cpu"
    assert "AuthenticAMD,25,1,0" in note


def test_a_different_cpu_id_is_not_matched_by_its_model_name() -> None:
    machine, note = match_machine("AMD EPYC", "AuthenticAMD,26,2,1")
    assert machine.name == "generic-server"
    assert "assumed" in note


def test_match_by_model_name_where_no_id_was_recorded() -> None:
    assert match_machine("AMD EPYC")[0].name == "epyc-guest-2cpu"


@pytest.mark.parametrize("cpu_model", [None, "", "Intel(R) Xeon(R) Platinum 8480C"])
def test_no_match_gives_the_generic_profile_and_says_assumed(cpu_model: str | None) -> None:
    machine, note = match_machine(cpu_model)
    assert machine.name == "generic-server"
    assert machine.assumed
    assert "assumed" in note
    assert "--machine" in note


# -- topology ----------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    sockets=st.integers(1, 4),
    caches=st.integers(1, 4),
    cores=st.integers(1, 8),
    threads=st.integers(1, 2),
)
def test_cpu_arrays_are_a_consistent_compact_tree(
    sockets: int, caches: int, cores: int, threads: int
) -> None:
    core, llc, socket = cpu_arrays(Topology(sockets, caches, cores, threads))
    assert len(core) == sockets * caches * cores * threads
    assert len(np.unique(core)) == sockets * caches * cores
    assert set(np.bincount(core)) == {threads}
    assert len(np.unique(llc)) == sockets * caches
    assert len(np.unique(socket)) == sockets
    # Each core lies in one cache, each cache in one socket.
    assert len(set(zip(core, llc, strict=True))) == len(np.unique(core))
    assert len(set(zip(llc, socket, strict=True))) == len(np.unique(llc))
    # Compact: caches and sockets are filled one after another, whole cores first.
    assert (np.diff(llc) >= 0).all()
    assert (np.diff(socket) >= 0).all()
    assert len(np.unique(core[:cores])) == cores


def test_extrapolation_grows_by_caches_and_sockets_and_says_so() -> None:
    small = load_machine("epyc-guest-2cpu")
    assert extrapolated(small, 2) is small
    big = extrapolated(small, 128)
    assert big.n_cpus == 128
    assert big.topology_basis == "extrapolated"
    assert any("extrapolated" in note for note in big.notes)
    assert set(np.bincount(big.cpu_llc)) == {8}
    assert set(np.bincount(big.cpu_socket)) == {64}
    assert len(np.unique(big.cpu_core)) == 128
    assert big.costs == small.costs
    odd = extrapolated(small, 65)
    assert list(np.bincount(odd.cpu_socket)) == [64, 1]


def test_extrapolation_keeps_a_larger_cache() -> None:
    big = extrapolated(load_machine("generic-server"), 128)
    assert set(np.bincount(big.cpu_llc)) == {32}


@pytest.mark.parametrize("cores", [0, -1, 10**9])
def test_impossible_core_counts_are_refused(cores: int) -> None:
    with pytest.raises(UserError, match="core"):
        extrapolated(load_machine("epyc-guest-2cpu"), cores)


# -- the command -------------------------------------------------------------------------


def test_list_and_show_agree_with_the_library() -> None:
    runner = CliRunner()
    listed = json.loads(runner.invoke(command, ["list", "--format", "json"]).stdout)
    assert [row["name"] for row in listed["machines"]] == list_machines()
    shown = json.loads(
        runner.invoke(command, ["show", "epyc-guest-2cpu", "--format", "json"]).stdout
    )
    machine = load_machine("epyc-guest-2cpu")
    assert shown["cpus"] == machine.n_cpus
    assert shown["numbers"]["costs"]["zap"]["value"] == machine.costs["zap"].value
    flat = {name: row for table in shown["numbers"].values() for name, row in table.items()}
    document = tomllib.loads(profile_text())
    for section in ("costs", "sleeps", "lines", "wake", "shootdown", "limits"):
        for name, entry in document[section].items():
            assert flat[name]["value"] == entry["value"]
            assert flat[name]["source"] == entry["source"]


def test_text_output_shows_every_number() -> None:
    runner = CliRunner()
    result = runner.invoke(command, ["show", "generic-server"])
    assert result.exit_code == 0
    machine = load_machine("generic-server")
    for name in (*machine.costs, *machine.sleeps, "waker_ns", "line_cross_ns"):
        assert name in result.stdout
    listed = runner.invoke(command, ["list"]).stdout
    for name in SHIPPED:
        assert name in listed

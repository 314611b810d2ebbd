"""Probes give what a profile asks for, in a sane range, and know which CPUs are how far apart."""

from __future__ import annotations

from mmreplay.fit.parameters import names_of
from mmreplay.hardware.facts import cache_places
from mmreplay.hardware.probes import distances, probe
from mmreplay.machine.loader import load_machine


def test_distances_of_a_machine_with_everything() -> None:
    places = {0: (0, 0, 0), 1: (0, 0, 1), 2: (0, 1, 2), 3: (1, 2, 3), 4: (0, 0, 0)}
    found = distances(places)
    assert (0, 4) in found["lines.line_smt_ns"]
    assert (0, 1) in found["lines.line_llc_ns"]
    assert (0, 2) in found["lines.line_socket_ns"]
    assert (2, 3) in found["lines.line_cross_ns"]
    assert sum(map(len, found.values())) == 10


def test_many_pairs_are_thinned() -> None:
    found = distances({cpu: (0, 0, cpu) for cpu in range(64)})
    assert 1 < len(found["lines.line_llc_ns"]) <= 6


def test_this_machine() -> None:
    places = cache_places()
    found = {one.name: one for one in probe(places, rounds=2)}
    known = set(names_of(load_machine("generic-server")))
    assert {name for name in found if not name.startswith("frequency.")} <= known
    assert all(one.value > 0 and one.spread >= 0 and one.n >= 1 for one in found.values())
    assert 20 < found["costs.syscall"].value < 100_000
    assert found["lines.atomic_ns"].value < 1_000
    if len(places) > 1:
        assert any(name.startswith("lines.line_") for name in found)
        assert found["wake.woken_ns"].value > 100

"""Quartiles from running counts, and exposures in windows, are those of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreplay.trace import services
from mmreplay.trace.exposure import add_exposure, new_open_set
from mmreplay.trace.services import BITS, Tally


def _kept(value: int, bits: int) -> int:
    """The first ``bits`` binary digits of a value."""
    less = max(0, value.bit_length() - bits)
    return value >> less << less


def _quartile(values: list[int], least: int, bits: int) -> int:
    if len(values) < least:
        return -1
    return _kept(sorted(values)[(len(values) - 1) // 4], bits)


_ROWS = st.lists(
    st.tuples(
        st.integers(0, 6),  # class
        st.one_of(st.integers(0, 40), st.integers(0, 1 << 62)),  # ns
        st.booleans(),  # wanted
        st.booleans(),  # quiet
    ),
    max_size=200,
)


def _count(rows: list[tuple[int, int, bool, bool]], cut: int) -> Tally:
    tally = Tally()
    for first in range(0, len(rows), cut):
        part = rows[first : first + cut]
        number, room, wanted, quiet = (np.array(column) for column in zip(*part, strict=True))
        tally.add(
            number.astype(np.int32),
            room.astype(np.int64),
            wanted.astype(np.uint8),
            (wanted & quiet).astype(np.uint8),
        )
    return tally


@given(rows=_ROWS, cut=st.integers(1, 50), least=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_quartiles_equal_their_definition(
    rows: list[tuple[int, int, bool, bool]], cut: int, least: int
) -> None:
    quiet_low, low = _count(rows, cut).low_quartiles(8, least)
    for one in range(8):
        own = [row for row in rows if row[0] == one and row[2]]
        assert quiet_low[one] == _quartile([row[1] for row in own if row[3]], least, BITS)
        assert low[one] == _quartile([row[1] for row in own], 1, BITS)


@given(rows=_ROWS, cut=st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_counts_are_bounded_and_do_not_depend_on_the_cut(
    rows: list[tuple[int, int, bool, bool]], cut: int
) -> None:
    """With room for few entries only, digits go; all that is left is as exact as it says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "MOST_ENTRIES", 32)
        patch.setattr(services, "_FIRST_ENTRIES", 16)
        whole, parts = _count(rows, 1000), _count(rows, cut)
    assert whole.bits == parts.bits
    for a, b in zip(whole.low_quartiles(8, 1), parts.low_quartiles(8, 1), strict=True):
        assert a.tolist() == b.tolist()
    for one, found in enumerate(whole.low_quartiles(8, 1)[1].tolist()):
        own = [row[1] for row in rows if row[0] == one and row[2]]
        assert found == _quartile(own, 1, whole.bits)


_OPERATIONS = st.lists(
    st.tuples(
        *(st.integers(0, 9), st.integers(0, 60), st.integers(1, 4), st.integers(0, 2)),
        st.integers(-20, 40).map(lambda ns: max(ns, 0)),
    ),
    min_size=1,
    max_size=60,
)


@given(rows=_OPERATIONS, window=st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_exposures_in_windows_are_those_of_the_whole(
    rows: list[tuple[int, int, int, int, int]], window: int
) -> None:
    begin = np.cumsum([row[0] for row in rows]).astype(np.int64)
    end = begin + np.array([row[1] for row in rows])
    tid = np.array([row[2] for row in rows], np.int32)
    role = np.array([row[3] for row in rows], np.uint8)
    space = np.zeros(len(rows), np.uint32)
    whole = np.zeros(len(rows), np.uint32)
    open_ops, open_count = new_open_set()
    none = np.zeros((0, 2), np.int64)
    slept = np.array([min(row[4], row[1]) for row in rows], np.uint32)
    add_exposure(whole, 0, 0, begin, end, tid, space, role, slept, open_ops, open_count, none)

    got = np.zeros(len(rows), np.uint32)
    open_ops, open_count = new_open_set()
    for first in range(0, len(rows), window):
        part = slice(first, first + window)
        far = np.full((int(open_count[0]), 2), -1, np.int64)
        open_ops = add_exposure(
            got[part], first, first, begin[part], end[part], tid[part], space[part], role[part],
            slept[part], open_ops, open_count, far,
        )  # fmt: skip
        for row, extra in far[far[:, 0] >= 0]:
            got[row] += extra
    for row, extra in open_ops[: open_count[0]][:, (4, 6)]:
        got[row] += extra
    assert got.tolist() == whole.tolist()

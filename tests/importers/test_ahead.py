"""Items made on a thread beside come in order, with their error, and never too many."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreplay.importers.ahead import Ahead


@given(st.integers(0, 20), st.integers(1, 5))
def test_all_items_come_in_order_and_their_memory_is_not_used_too_early(
    count: int, most: int
) -> None:
    memory = [-1] * most

    def source() -> Iterator[tuple[int, int]]:
        for number in range(count):
            memory[number % most] = number
            yield number % most, number

    for expected, (place, number) in enumerate(Ahead(source(), most)):
        assert number == expected
        assert memory[place] == number


def test_an_error_comes_where_the_next_item_would() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("damaged")

    items = iter(Ahead(source(), 4))
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(KeyError, match="damaged"):
        next(items)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_ends_the_thread_however_much_was_taken(taken: int) -> None:
    before = threading.active_count()

    def source() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    ahead = Ahead(source(), 2)
    items = iter(ahead)
    assert [next(items) for _ in range(taken)] == list(range(taken))
    ahead.close()
    assert threading.active_count() == before

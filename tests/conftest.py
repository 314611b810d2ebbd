"""Which tests stay together when several workers share them (``pytest -n auto --dist loadgroup``).

Tests that record, count or measure on this machine run one after another, so that they do not
disturb each other.  All others stay together by file, for their fixtures.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

import pytest

_HERE: Final = Path(__file__).parent
_MEASURING: Final = {"hardware", "recorder", "lockcounts", "test_docs.py"}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what runs in its background (make test &): what tests start would inherit
    # it, and Ctrl-C would end nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        room, *_ = item.path.relative_to(_HERE).parts
        measures = room in _MEASURING or any(item.iter_markers("perf"))
        group = "this machine" if measures else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))

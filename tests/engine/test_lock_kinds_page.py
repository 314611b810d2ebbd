"""docs/lock-kinds.md: its example runs, its excerpts are the sources, its lists are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from scenario import COSTS, SHORT, check_accounts, ends
from small import W, machine, model, op, plan

from mmreplay.address_space.plan import PlanOp
from mmreplay.engine import Options, world
from mmreplay.engine.kinds.base import Lock
from mmreplay.engine.oracle import simulate_oracle
from mmreplay.engine.states import State
from mmreplay.locking.isa import FlushScope, Kind, Op, Scope
from mmreplay.locking.vocabulary import BITS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "lock-kinds.md").read_text()
BLOCK = re.compile(r"(?:<!-- from: (?P<file>\S+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


def test_the_example_runs_as_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [b["code"] for b in BLOCK.finditer(PAGE) if not b["file"]]
    names: dict[str, Any] = {"Lock": Lock, "State": State}
    exec(code, names)
    program = [(Op.LOCK, "zone", W), (Op.COST, SHORT), (Op.UNLOCK, "zone", W), (Op.DONE,)]
    inputs = (
        plan([[op()], [op()], [op()]], offsets=[0, 100, 200]),
        model({PlanOp.FAULT: program}),
        machine(4, COSTS),
        Options(cores=4),
    )
    assert ends(simulate_oracle(*inputs)) == [1060, 2120, 3180]
    monkeypatch.setitem(world._FACTORY, Kind.SPIN, names["Ticket"])
    result = simulate_oracle(*inputs)
    check_accounts(result)
    assert ends(result) == [1060, 2160, 3260]
    for end in (*ends(result), 3180):
        assert str(end) in PAGE


def test_excerpts_are_the_sources() -> None:
    excerpts = [b for b in BLOCK.finditer(PAGE) if b["file"]]
    assert excerpts
    for block in excerpts:
        assert block["code"] in (ROOT / block["file"]).read_text()


def test_the_lists_are_complete() -> None:
    for kind in Kind:
        assert f"| `{kind.name.lower()}` |" in PAGE
    for scope in Scope:
        assert f"`{scope.name.lower()}`" in PAGE
    for bit in BITS:
        assert f"`{bit}`" in PAGE
    for scope in (FlushScope.MM, FlushScope.TOUCHED):
        assert f"`{scope.name.lower()}`:" in PAGE


def test_files_and_names_that_the_page_mentions_exist() -> None:
    sources = "".join(f.read_text() for f in (ROOT / "replay/mmreplay").rglob("*.py"))
    for name in ("design_lock", "design_unlock", "_FACTORY", "_BY_KIND", "spin_on", "wait_event"):
        assert name in sources
    for path in re.findall(r"`((?:engine|locking|kinds)/[\w/]+\.py)`", PAGE):
        if path != "engine/kinds/ticket.py":
            places = [ROOT / "replay/mmreplay" / path, ROOT / "replay/mmreplay/engine" / path]
            assert any(p.exists() for p in places), path

# ruff: noqa: E501
"""The assembler: what it refuses, where it points, and that what it accepts is sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmreplay.address_space.plan import MarkSet, PlanOp, Trait
from mmreplay.errors import UserError
from mmreplay.locking import check_file, load_model
from mmreplay.locking.isa import OP, TARGET, A, B, C, Op, Operand
from mmreplay.locking.loader import load_source
from mmreplay.locking.source import parse_source
from mmreplay.locking.vocabulary import BITS, COSTS, COUNTS, REASONS, SETS, SLEEPS, TRAITS, WORDS
from mmreplay.locking.walk import walk

HEAD = """
title = "t"
vma_rules = "linux-6.18"
[locks.mmap_lock]
kind = "rwsem"
scope = "mm"
rank = 10
bumps = "mm_seq"
[locks.mm_seq]
kind = "seq"
scope = "mm"
[locks.vma_lock]
kind = "pin"
scope = "vma"
rank = 40
marks_by = "mm_seq"
[locks.ptl]
kind = "spin"
scope = "table"
rank = 70
[locks.range]
kind = "range"
scope = "mm"
rank = 20
wait = "sleep"
"""
LINE = HEAD.count("\n") + 3  # of the first statement of program()


def program(body: str, name: str = "fault", more: str = "") -> str:
    return f'{HEAD}[programs]\n{name} = """\n{body}\n"""\n{more}'


def build(text: str, tmp_path: Path):
    return load_source(parse_source(text.encode(), tmp_path / "m.toml", "m.toml"))


def mistakes(text: str, tmp_path: Path) -> list[tuple[int, str]]:
    path = tmp_path / "m.toml"
    path.write_text(text)
    model, problems = check_file(path)
    assert (model is None) == bool(problems)
    return [(p.line, p.text) for p in problems]


#: program text -> line of the mistake (counted from its first), part of its message
REFUSED = {
    "unknown word": ("lokc mmap_lock read\ndone", 0, 'unknown word "lokc" (did you mean "lock"?)'),
    "unknown lock": ("lock mmap_lok read\ndone", 0, '(did you mean "mmap_lock"?)'),
    "unknown cost": ("cost zero_pages\ndone", 0, '(did you mean "zero_page"?)'),
    "unknown condition": ("if kernel_mod goto a\n.a:\ndone", 0, '(did you mean "kernel_mode"?)'),
    "unknown set": ("each removd\nend\ndone", 0, '(did you mean "removed"?)'),
    "unknown reason": ("count fallbak\ndone", 0, '(did you mean "fallback"?)'),
    "unknown label": ("goto nowhere\n.nowher:\ndone", 0, '(did you mean "nowher"?)'),
    "unknown line": ("touch mm.3\ndone", 0, 'unknown cache line "mm.3"'),
    "held at done": ("cost walk\nlock mmap_lock read\ndone", 2, "done while mmap_lock (read)"),
    "runs off": ("cost walk", 0, "runs off its end"),
    "not held": ("unlock ptl\ndone", 0, "ptl, which is not held here"),
    "twice": ("lock ptl\nlock ptl\nunlock ptl\ndone", 1, "already held"),
    "join": (
        "if write goto a\nlock mmap_lock read\n.a:\nunlock mmap_lock\ndone",
        3,
        "two paths meet with different locks held: ",
    ),
    "unbalanced else": (
        "try mmap_lock read else no\ncost walk\n.no:\nunlock mmap_lock\ndone",
        3,
        "different locks held",
    ),
    "each keeps": ("each removed\nlock ptl\nend\ndone", 2, "each must leave the locks"),
    "sleep under spin": ("lock ptl\nsleep io\nunlock ptl\ndone", 1, "may sleep while the spin"),
    "rwsem under spin": (
        "lock ptl\nlock mmap_lock read\nunlock mmap_lock\nunlock ptl\ndone",
        1,
        "may sleep while the spin lock ptl",
    ),
    "order": (
        "lock vma_lock read\nlock mmap_lock read\nunlock mmap_lock\nunlock vma_lock\ndone",
        1,
        "lock order: mmap_lock (rank 10) is waited for while vma_lock (read) (rank 40)",
    ),
    "retry in an operation": ("retry", 0, "retry outside of a called program"),
    "unreachable": ("done\ncost walk\ndone", 1, "no path reaches this line"),
    "mark without each": (
        "lock mmap_lock write\nmark\nunlock mmap_lock\ndone",
        1,
        "mark outside of each",
    ),
    "mark under read": (
        "lock mmap_lock read\neach removed\nmark\nend\nunlock mmap_lock\ndone",
        2,
        "held for writing",
    ),
    "downgrade of read": (
        "lock mmap_lock read\ndowngrade mmap_lock\nunlock mmap_lock\ndone",
        1,
        "not held for writing",
    ),
    "downgrade of spin": ("lock ptl\ndowngrade ptl\nunlock ptl\ndone", 1, "only an rwsem"),
    "pin for writing": ("lock vma_lock write\nunlock vma_lock\ndone", 0, "is a pin lock"),
    "seq locked": ("lock mm_seq read\ndone", 0, "use snap and check"),
    "check without snap": ("check mm_seq else a\n.a:\ndone", 0, "check without a snap"),
    "range without range": ("lock range read\nunlock range\ndone", 0, "needs a range"),
    "range twice": (
        "lock range read @op\nlock range write @vma1\nunlock range\ndone",
        1,
        "already held",
    ),
    "range on rwsem": (
        "lock mmap_lock read @page\nunlock mmap_lock\ndone",
        0,
        "is for range locks",
    ),
    "child of a table": ("lock ptl @child\nunlock ptl\ndone", 0, "wrong scope"),
    "child in a fault": (
        "lock mmap_lock write @child\nunlock mmap_lock\ndone",
        0,
        "wrong scope: only fork",
    ),
    "calls itself": ("call fault\ndone", 0, "cannot call themselves: fault -> fault"),
    "each in each": ("each removed\neach splits\nend\nend\ndone", 1, "each inside each"),
    "into each": ("goto a\neach removed\n.a:\ncost walk\nend\ndone", 0, "jumps into the each"),
    "end alone": ("end\ndone", 0, "end without each"),
    "endless": (".a:\ncost walk\ngoto a", 0, "never ends"),
    "endless by a trait": (".a:\ncost walk\nif write goto a\ndone", 0, "never ends"),
    "timeless": (".a:\nif vma.dead goto a\ndone", 0, "takes no time"),
    "never true": ("if write !write goto a\n.a:\ndone", 0, "can never hold"),
    "label twice": (".a:\ncost walk\n.a:\ndone", 2, 'label "a" is already defined'),
    "bad form": ("lock\ndone", 0, 'the form is "lock LOCK read|write [@RANGE]"'),
    "bad every": ("if every x goto a\n.a:\ndone", 0, "needs a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused_at_their_line(case: str, tmp_path: Path) -> None:
    body, offset, message = REFUSED[case]
    found = mistakes(program(body), tmp_path)
    matching = [line for line, text in found if message in text]
    if not matching:
        pytest.fail(f"no such message among {found}")
    # a label takes a line of the text but is no statement of its own
    assert LINE + offset in matching or case in ("endless", "endless by a trait", "timeless")


def test_both_paths_of_a_bad_join_are_named(tmp_path: Path) -> None:
    body = "if write goto a\nlock mmap_lock read\n.a:\nunlock mmap_lock\ndone"
    (text,) = [t for _, t in mistakes(program(body), tmp_path) if "two paths" in t]
    assert "mmap_lock (read)" in text
    assert "nothing" in text
    assert f"line {LINE}" in text


def test_every_mistake_is_reported_not_only_the_first(tmp_path: Path) -> None:
    found = mistakes(program("cost nope\nlock nope read\nsleep nope\ndone"), tmp_path)
    assert [line for line, _ in found] == [LINE, LINE + 1, LINE + 2]


DECLARATIONS = {
    "unknown key": ('titel = "x"\n' + program("done"), 'unknown key "titel" (did you mean "title"?)'),
    "not toml": ("title = \n", "not valid TOML"),
    "wrong parameter": (
        program("done").replace('kind = "spin"', 'kind = "spin"\nsteal = true'),
        '"steal" is no parameter of a spin lock',
    ),
    "bad kind": (program("done").replace('"spin"', '"spinn"'), '(did you mean "spin"?)'),
    "bad scope": (program("done").replace('"table"', '"tabel"'), '(did you mean "table"?)'),
    "line of another scope": (
        program("done").replace('scope = "table"', 'scope = "table"\nline = "mm.1"'),
        "does not belong to scope table",
    ),
    "range of one table": (
        program("done").replace('"range"\nscope = "mm"', '"range"\nscope = "node"'),
        'a range lock has scope mm, "range" has node',
    ),
    "owner line of another scope": (
        program("done").replace('bumps = "mm_seq"', 'bumps = "mm_seq"\nowner_line = "vma.2"'),
        "does not belong to scope mm",
    ),
    "bumps nothing": (
        program("done").replace('bumps = "mm_seq"', 'bumps = "mm_sek"'),
        'names "mm_sek", which is no seq lock (did you mean "mm_seq"?)',
    ),
    "marks never dropped": (
        program("done").replace('bumps = "mm_seq"', ""), "would never be dropped",
    ),
    "no program": (HEAD, "no program of any operation"),
    "misspelt operation": (
        program("done", more='munamp = "done"'),
        'program "munamp" is never used (did you mean "munmap"?)',
    ),
    "kernel without programs": (
        'kernel = "6.9"\n' + program("done"), "needs a program for every operation; missing: mmap",
    ),
    "kernel no release": ('kernel = "six"\n' + program("done"), "first release"),
    "cost without source": (program("done", more="[costs]\nmine = {ns = 5}"), "needs a source"),
    "cost of the machine": (
        program("done", more='[costs]\nwalk = {ns = 5, source = "x"}'), "comes from the machine",
    ),
    "negative cost": (
        program("done", more='[costs]\nmine = {ns = -5, source = "x"}'), "from 0 to 1e12",
    ),
    "extends nothing": ('extends = "linux-6.01"\n' + program("done"), 'did you mean "linux-6.'),
}  # fmt: skip


@pytest.mark.parametrize("case", DECLARATIONS)
def test_declarations_are_checked(case: str, tmp_path: Path) -> None:
    text, message = DECLARATIONS[case]
    found = mistakes(text, tmp_path)
    assert any(message in text for _, text in found), found


def test_extends_in_a_circle_names_the_chain(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.toml").write_text(f'extends = "{base}"\n' + program("done"))
    with pytest.raises(UserError, match="a -> b -> c -> a"):
        load_model(tmp_path / "a.toml")


def test_extends_replaces_programs_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "t"\nextends = "linux-6.18"\n[programs]\nthread_exit = """\ncost exit_common\ndone\n"""\n'
    )
    mine, base = load_model(path), load_model("linux-6.18")
    assert walk(mine, PlanOp.THREAD_EXIT).mmap_lock == (0, 0, 0)
    assert walk(mine, PlanOp.MUNMAP).mmap_lock == walk(base, PlanOp.MUNMAP).mmap_lock
    assert mine.kernel is None
    assert mine.vma_rules == base.vma_rules
    assert mine.sha256 != base.sha256


def test_held_is_decided_at_assembly(tmp_path: Path) -> None:
    body = (
        "lock mmap_lock read\ncall body\nunlock mmap_lock\ncall body\ndone\n"
        '"""\nbody = """\nif held.mmap_lock goto a\ncost walk\n.a:\ncost find'
    )
    model = build(program(body), tmp_path)
    assert not (model.code[:, OP] == Op.BRANCH).any()
    done = walk(model, PlanOp.FAULT)
    assert (done.costs["walk"], done.costs["find"]) == (1, 2)


def test_retry_leaves_by_the_callers_label(tmp_path: Path) -> None:
    body = (
        "lock vma_lock read\ncall body retry again\nunlock vma_lock\ndone\n"
        ".again:\nunlock vma_lock\ncount retry\ndone\n"
        '"""\nbody = """\nif write goto retry\ncost walk'
    )
    model = build(program(body), tmp_path)
    assert walk(model, PlanOp.FAULT, Trait.WRITE).reasons["retry"] == 1
    assert walk(model, PlanOp.FAULT).costs["walk"] == 1


def test_two_instances_of_a_lock_are_unlocked_by_name(tmp_path: Path) -> None:
    body = "lock mmap_lock write\nlock mmap_lock write @child\nunlock mmap_lock @child\nunlock mmap_lock\ndone"
    model = build(program(body, "fork"), tmp_path)
    unlocks = model.code[model.code[:, OP] == Op.UNLOCK]
    assert unlocks[:, C].tolist() == [Operand.CHILD, Operand.NONE]


@pytest.mark.parametrize("name", ["linux-6.1", "linux-6.18"])
def test_code_is_well_formed(name: str) -> None:
    model = load_model(name)
    code = model.code
    n = len(code)
    assert ((code[:, TARGET] >= -1) & (code[:, TARGET] < n)).all()
    needs = np.isin(code[:, OP], [Op.TRY, Op.BRANCH, Op.JUMP, Op.EACH, Op.END, Op.CHECK])
    assert (code[needs, TARGET] >= 0).all()
    for op, table in ((Op.COST, model.costs), (Op.SLEEP, model.sleeps), (Op.COUNT, model.reasons)):
        used = set(code[code[:, OP] == op, A].tolist())
        assert used == set(range(len(table)))
    assert set(model.costs) <= set(COSTS) | set(model.default_costs)
    # the last step of the code cannot fall through
    assert code[-1, OP] in (Op.DONE, Op.JUMP, Op.END)
    assert (code[code[:, OP] == Op.LOCK, B] >= 0).all()


# -- fuzzing ------------------------------------------------------------------------------

_word = st.sampled_from(
    [*WORDS, "mmap_lock", "vma_lock", "ptl", "mm_seq", "range", "read", "write", "@page", "@child", "else", "retry", "a", "b", "fault", "body", "31", "*", "#", ".a:", ".b:", "", "\\", "'", *[*COSTS][:4], *SLEEPS, *[*REASONS][:3], *[*TRAITS][:6], *BITS, *SETS, *COUNTS, "held.mmap_lock", "!held.ptl", "!vma.anon_vma", "!write", "mm.mm_seq"]
)  # fmt: skip
_form = st.sampled_from(
    ["lock mmap_lock read", "lock mmap_lock write", "unlock mmap_lock", "downgrade mmap_lock",
     "try mmap_lock read else a", "lock ptl", "unlock ptl", "try vma_lock read else b",
     "unlock vma_lock", "each removed", "mark", "end", "goto a", "if write goto b", ".a:", ".b:",
     "call body retry a", "call body", "retry", "done", "snap mm_seq else b", "check mm_seq else a",
     "cost walk", "cost zap * pages", "sleep io", "flush mm", "set vma.anon_vma", "count retry",
     "if held.mmap_lock goto a", "if vma.anon_vma goto b", "if every 31 goto a",
     "lock range write @op", "unlock range"]
)  # fmt: skip
_line = st.one_of(_form, st.lists(_word, max_size=5).map(" ".join))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(_line, max_size=14), st.lists(_form, max_size=6), st.sampled_from(["fault", "munmap"])
)
def test_any_program_is_refused_or_runs(
    tmp_path: Path, lines: list[str], body: list[str], name: str
) -> None:
    text = f"{HEAD}[programs]\n{name} = '''\n" + "\n".join(lines).replace("'", "") + "\n'''\n"
    text += "body = '''\n" + "\n".join(body) + "\n'''\n"
    try:
        model = build(text, tmp_path)
    except UserError as error:
        assert "\n" not in error.line()
        assert error.line().startswith("m.toml")
        return
    for traits in (Trait(0), Trait.WRITE):
        for fail in (frozenset(), frozenset({"mmap_lock", "vma_lock"})):
            walk(model, PlanOp[name.upper()], traits, {MarkSet.REMOVED: 2}, fail=fail)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 10_000)), st.data()
)
def test_any_file_is_refused_or_loads(tmp_path: Path, damage, data) -> None:
    raw = program("lock mmap_lock write\nunlock mmap_lock\ndone").encode()
    if isinstance(damage, bytes):
        at = data.draw(st.integers(0, len(raw)))
        raw = raw[:at] + damage + raw[at:]
    else:
        at = damage % len(raw)
        raw = raw[:at] + raw[at + data.draw(st.integers(1, 40)) :]
    try:
        load_source(parse_source(raw, tmp_path / "m.toml", "m.toml"))
    except UserError as error:
        assert "\n" not in error.line()

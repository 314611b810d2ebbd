"""``models diff``: what changed, in words that a kernel developer would use."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmreplay.cli.models import changes_between, command
from mmreplay.locking import list_models, load_model
from mmreplay.locking.diff import as_data, diff

KERNELS = [model for model in list_models() if model.kernel]


def texts(before: str, after: str) -> list[str]:
    return [change.text for change in diff(load_model(before), load_model(after))]


@pytest.mark.parametrize("model", list_models(), ids=lambda m: m.name)
def test_a_model_differs_in_nothing_from_itself(model) -> None:
    assert diff(model, model) == []


#: What each release is known for must be among the words.
KNOWN_FOR = {
    ("linux-5.10", "linux-5.15"): [
        "lock mmap_lock: reader_spin true → false",
        "madvise_populate: takes mmap_lock for reading; before: no lock of the map",
    ],
    ("linux-5.15", "linux-6.1"): [
        "fault (that grows the stack): takes mmap_lock for reading, mmap_lock for writing,"
        " a downgrade of mmap_lock; before: mmap_lock for reading",
        "mprotect (three VMAs): flush mm under mmap_lock write; before: flush mm under"
        " mmap_lock write 3 times",
    ],
    ("linux-6.2", "linux-6.4"): [
        "lock vma_lock added: pin per vma, line vma.lock (marks_by mm_lock_seq)",
        "fork: marks 7 VMAs; before: none",
    ],
    ("linux-6.4", "linux-6.5"): [
        "munmap (below a stack): takes mmap_lock for writing, a downgrade of mmap_lock; before:"
        " mmap_lock for writing",
    ],
    ("linux-6.5", "linux-6.6"): [
        "fault (file read by fault-around; file write, private, over a read page; shmem read by"
        " fault-around): takes vma_lock for reading; before: mmap_lock for reading (fallback"
        " not_anonymous)",
    ],
    ("linux-6.7", "linux-6.9"): ["fault: batches end every 31, 63, 64 pages; before: 15, 63, 64"],
    ("linux-6.9", "linux-6.10"): [
        "fault (read of a VMA never written): takes vma_lock for reading; before: mmap_lock for"
        " reading (fallback no_anon_vma)",
    ],
    ("linux-6.10", "linux-6.12"): ["lock mmap_lock: bump_acquire false → true"],
    ("linux-6.14", "linux-6.15"): ["lock vma_lock: form rwsem → refcount"],
    ("linux-6.15", "linux-6.17"): [
        "proc_maps (read(2); read(2) at the end): takes no lock of the map; before: mmap_lock for"
        " reading",
    ],
    ("linux-6.18", "linux-6.19"): [
        "madvise_guard (install): takes vma_lock for reading; before: mmap_lock for reading",
    ],
    ("linux-7.0", "linux-7.3"): [
        "proc_smaps: takes no lock of the map; before: mmap_lock for reading",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), KNOWN_FOR)
def test_what_a_release_is_known_for_is_said(before: str, after: str) -> None:
    said = texts(before, after)
    for text in KNOWN_FOR[before, after]:
        assert text in said


def test_releases_that_lock_alike_differ_in_nothing() -> None:
    assert diff(load_model("linux-6.17"), load_model("linux-6.18")) == []


@pytest.mark.parametrize(("a", "b"), list(pairwise(KERNELS)), ids=lambda m: m.name)
def test_a_diff_read_backwards_says_the_same_of_both(a, b) -> None:
    there = {(c.operation, c.about, c.before, c.after) for c in diff(a, b)}
    back = {(c.operation, c.about, c.after, c.before) for c in diff(b, a)}
    declared = {"lock", "presence", "vma_rules", "cost"}  # their sentences are not symmetrical
    assert {c for c in there if c[1] not in declared} == {c for c in back if c[1] not in declared}


def test_where_the_walk_moves_is_said() -> None:
    (said,) = [t for t in texts("linux-6.1", "maple-rcu-only") if "walk under no lock" in t]
    assert said.endswith("before: walk under mmap_lock read")


def test_vma_rules_are_written_out() -> None:
    pair = load_model("linux-6.6"), load_model("linux-6.7")
    said = [change.text for change in changes_between(*pair)]
    assert "VMA rule thp_align_anonymous is large; before: none" in said


def test_a_changed_cost_of_its_own_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "t"\nextends = "linux-6.18"\n[costs]\nextra = { ns = 7, source = "x" }\n'
        '[programs]\npkey = """\n  cost syscall\n  cost extra\n  done\n"""\n'
    )
    said = [change.text for change in diff(load_model("linux-6.18"), load_model(path))]
    assert "also extra 7 ns" in said
    assert "pkey: takes no lock of the map; before: mmap_lock for writing" in said
    assert "pkey: work: also extra" in said


def test_the_command_is_the_library_call() -> None:
    pair = load_model("linux-6.5"), load_model("linux-6.7")
    changes = changes_between(*pair)
    shown = CliRunner().invoke(command, ["diff", "linux-6.5", "linux-6.7"], catch_exceptions=False)
    told = " ".join(change.text for change in changes)  # the page folds its lines
    assert shown.stdout.split() == told.split()
    data = CliRunner().invoke(
        command, ["diff", "linux-6.5", "linux-6.7", "--format", "json"], catch_exceptions=False
    )
    assert json.loads(data.stdout) == as_data(*pair, changes)

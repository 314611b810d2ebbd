"""``models check``: each kind of mistake is refused with file, line and the closest word."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmreplay.cli.main import main

HEAD = """title = "a model with a mistake"
vma_rules = "linux-6.18"
[locks.mmap_lock]
kind = "rwsem"
scope = "mm"
rank = 10
[locks.ptl]
kind = "spin"
scope = "table"
rank = 70
[programs]
fault = '''
"""
#: the line of the first statement
FIRST = HEAD.count("\n") + 1


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines on stderr; the command exits with 2."""
    with pytest.raises(SystemExit) as stop:
        main(["models", "check", str(path)])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()


def program(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + "\n".join(lines) + "\n'''\n")
    return path


def test_unknown_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = program(tmp_path, "cost walk", "lokc mmap_lock read", "done")
    said = refused(path, capsys)
    assert said[0] == f'{path}:{FIRST + 1}: unknown word "lokc" (did you mean "lock"?)'


def test_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = program(tmp_path, "lock mmap_lok read", "cost zero_pages", "done")
    said = refused(path, capsys)
    assert said[0] == f'{path}:{FIRST}: unknown lock "mmap_lok" (did you mean "mmap_lock"?)'
    assert said[1] == f'{path}:{FIRST + 1}: unknown cost "zero_pages" (did you mean "zero_page"?)'


def test_missing_releases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On one path only: the path is named by its lines."""
    path = program(
        tmp_path,
        "lock mmap_lock read",
        "if write goto out",
        "unlock mmap_lock",
        "done",
        ".out:",
        "cost walk",
        "done",
    )
    (said, _) = refused(path, capsys)
    assert said.startswith(
        f"{path}:{FIRST + 6}: done while mmap_lock (read) taken at {path}:{FIRST} is held"
    )
    assert f"line {FIRST + 1}" in said


def test_unbalanced_locks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = program(
        tmp_path,
        "try mmap_lock read else busy",
        "cost walk",
        ".busy:",
        "cost find",
        "unlock mmap_lock",
        "done",
    )
    said = refused(path, capsys)[0]
    assert said.startswith(f"{path}:{FIRST + 3}: two paths meet with different locks held")
    assert "holds mmap_lock (read)" in said
    assert "holds nothing" in said


def test_sleeping_under_a_spin_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = program(tmp_path, "lock ptl", "sleep io", "unlock ptl", "done")
    said = refused(path, capsys)[0]
    assert said == f'{path}:{FIRST + 1}: "sleep" may sleep while the spin lock ptl is held'


def test_unreachable_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = program(tmp_path, "cost walk", "done", "cost find", "done")
    said = refused(path, capsys)
    assert said[0] == f"{path}:{FIRST + 2}: no path reaches this line"


def test_cyclic_extends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, base in (("one", "two"), ("two", "one")):
        (tmp_path / f"{name}.toml").write_text(f'title = "t"\nextends = "{base}"\n')
    said = refused(tmp_path / "one.toml", capsys)[0]
    assert said == f"{tmp_path / 'two.toml'}:2: extends goes in a circle: one -> two -> one"


def test_extends_something_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "t"\nextends = "linux-6.81"\n')
    said = refused(path, capsys)[0]
    assert said.startswith(f'{path}:2: extends unknown model "linux-6.81" (did you mean "linux-')


def test_a_lock_of_the_wrong_scope(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = program(tmp_path, "lock ptl @child", "unlock ptl @child", "done")
    said = refused(path, capsys)[0]
    assert said.startswith(f"{path}:{FIRST}: wrong scope: @child needs a lock of scope mm")
    assert '"ptl" has scope table' in said


def test_an_order_against_the_declared_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    text = HEAD.replace('kind = "spin"', 'kind = "rwsem"')
    path.write_text(
        text + "lock ptl read\nlock mmap_lock read\nunlock mmap_lock\nunlock ptl\ndone\n'''\n"
    )
    said = refused(path, capsys)[0]
    assert said.startswith(
        f"{path}:{FIRST + 1}: lock order: mmap_lock (rank 10) is waited for while ptl (read)"
        " (rank 70) is held"
    )


def test_a_parameter_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD.replace("rank = 70", "rank = 70\nsteel = true") + "done\n'''\n")
    said = refused(path, capsys)[0]
    assert said.startswith(f'{path}:11: unknown key "steel"')


def test_vma_rules_that_there_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "linux-6.18"\ntitle = "x"\nvma_rules = "linux-6.21"\n')
    said, *_ = refused(path, capsys)
    assert said.startswith(f'{path}:3: unknown VMA rules "linux-6.21"')
    assert "linux-6.12" in said


def test_locks_without_ranks_are_taken_in_one_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "abba.toml"
    both = "  lock {0} write\n  cost walk\n  lock {1} write\n  unlock {1}\n  unlock {0}\n  done\n"
    path.write_text(
        'title = "x"\nvma_rules = "linux-6.18"\n'
        '[locks.a]\nkind = "rwsem"\nscope = "mm"\n[locks.b]\nkind = "rwsem"\nscope = "mm"\n'
        f"[programs]\nfault = '''\n{both.format('a', 'b')}'''\n"
        f"mmap = '''\n{both.format('b', 'a')}'''\n"
    )
    said = refused(path, capsys)
    assert "lock order: " in said[0]
    assert f"b under a ({path}:13)" in said[0]
    assert f"a under b ({path}:21)" in said[0]


def test_a_mistake_in_an_extended_model_says_what_led_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "x"\nextends = "linux-6.18"\n[programs]\nbrk_query = \'\'\'\n'
        "  lock anon_vma_lock write\n  call write_lock\n  call mm_unlock\n"
        "  unlock anon_vma_lock\n  done\n'''\n"
    )
    said = refused(path, capsys)
    assert "lock order: mmap_lock" in said[0]
    assert said[0].endswith(f"; reached from brk_query ({path}:5)")


def extended(tmp_path: Path, base: str, programs: str) -> Path:
    """A model that replaces some programs of ``base``; its programs begin at line 4."""
    path = tmp_path / "mine.toml"
    path.write_text(f'title = "x"\nextends = "{base}"\n[programs]\n{programs}')
    return path


@pytest.mark.parametrize(
    ("base", "operation", "lines", "wrong", "said"),
    [
        ("linux-6.18", "brk_query", "{}\nunlock i_mmap_lock", "lock i_mmap_lock write", "no file"),
        ("linux-6.18", "fork", "{}\nunlock i_mmap_lock", "lock i_mmap_lock write", "no file"),
        ("linux-6.18", "pkey", "{}\nunlock vma_lock\n.a:", "try vma_lock read else a", "no VMA"),
        ("linux-6.18", "fork", "each tables\n{}\nunlock vma_lock\nend", "lock vma_lock read",
         "no VMA"),
        ("linux-6.18", "proc_rollup", "each targets\n{}\nunlock vma_lock\nend",
         "lock vma_lock read", "no VMA"),
        ("linux-6.18", "munmap", "{}\nunlock anon_vma_lock", "lock anon_vma_lock write",
         "no anon_vma"),
        ("linux-6.18", "exec", "{}\nunlock ptl", "lock ptl", "no page table"),
        ("linux-6.18", "mprotect", "lock mmap_lock write\neach tables\n{}\nend\nunlock mmap_lock",
         "mark", "walks page tables"),
        ("range-lock", "thread_exit", "{}\nunlock mmap_lock", "lock mmap_lock read @op",
         "take @all"),
        ("range-lock", "brk_query", "{}\nunlock mmap_lock", "lock mmap_lock read @vma", "no VMA"),
    ],
)  # fmt: skip
def test_a_lock_of_something_that_the_operation_lacks(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    base: str,
    operation: str,
    lines: str,
    wrong: str,
    said: str,
) -> None:
    lines = lines.format(wrong)
    path = extended(tmp_path, base, f"{operation} = '''\n{lines}\ndone\n'''\n")
    found = refused(path, capsys)
    at = 5 + lines.split("\n").index(wrong)
    assert len(found) == 2
    assert found[0].startswith(f"{path}:{at}: ")
    assert said in found[0]


def test_the_vma_that_each_walks_can_be_locked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walk = "each parent_vmas\nlock vma_lock read\ncost walk\nunlock vma_lock\nend\ndone\n"
    path = extended(tmp_path, "linux-6.18", f"fork = '''\n{walk}'''\n")
    main(["models", "check", str(path)])
    assert "ok" in capsys.readouterr().out


@pytest.mark.parametrize("leave", ["goto out", "goto tail", "if write goto out"])
def test_each_is_left_by_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], leave: str
) -> None:
    path = extended(
        tmp_path,
        "linux-6.18",
        f"fork = '''\neach parent_vmas\ncost walk\nif write goto next\n{leave}\n.next:\nend\n"
        ".out:\ndone\n'''\ntail = '''\ncost walk\ndone\n'''\n",
    )
    found = refused(path, capsys)
    assert found[0].startswith(f"{path}:8: jumps out of the each at line 5")


def test_retry_does_not_leave_an_each_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = extended(
        tmp_path,
        "linux-6.18",
        "fork = '''\ncall part retry again\n.again:\ndone\n'''\n"
        "part = '''\neach parent_vmas\ncost walk\nif write goto retry\nend\n'''\n",
    )
    assert refused(path, capsys)[0].startswith(f"{path}:12: jumps out of the each at line 10")


@pytest.mark.parametrize(
    "text",
    ["lock vma_lock read\nunlock vma_lock\nlock mmap_lock write\n", "lock ptl\nunlock pmdl\n"],
)
def test_a_mistake_of_a_shared_program_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """With the operations that it is in, not once for each."""
    path = extended(tmp_path, "linux-6.18", f"write_lock = '''\n{text}'''\n")
    found = [line for line in refused(path, capsys) if line.startswith(f"{path}:")]
    assert len({line.split(": ")[0] for line in found}) == len(found)
    assert "; used by " in found[0]
    assert " operations: " in found[0]
    assert " more" in found[0]

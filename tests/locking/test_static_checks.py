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

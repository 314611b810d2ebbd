"""What the command line refuses: one line, what and where and the fix, exit code 2."""

from __future__ import annotations

import re
import sys

import pytest

from mmreplay.cli.main import main

TRACE = "absent.mmt"


def refusal(capfd: pytest.CaptureFixture[str], words: str) -> str:
    """The line on stderr; nothing is on stdout."""
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    out, err = capfd.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.startswith("mmreplay: ")
    assert err.count("\n") == 1
    return err.removeprefix("mmreplay: ").rstrip("\n")


@pytest.mark.parametrize(
    ("words", "where", "fix"),
    [
        (f"replay {TRACE} --kernel 6.1 --cores 1-", "--cores: 1- is", "one whole number"),
        (f"replay {TRACE} --kernel 6.1 --cores 1e3", "--cores: 1e3 is", "one whole number"),
        (f"replay {TRACE} --kernel 6.1 --threads 1,2", "--threads: 1,2 is", "one whole number"),
        (f"export {TRACE} --format csv --from x", "--from: x is", "give a number"),
        (f"replay {TRACE}", "Missing option '--kernel'", "see mmreplay replay --help"),
        ("replay", "Missing argument 'TRACE'", "see mmreplay replay --help"),
        (f"predict {TRACE} --to 6.18", "Missing option '--cores'", "see mmreplay predict --help"),
        (f"show {TRACE} other", "unexpected extra argument", "see mmreplay show --help"),
        (f"show {TRACE} --foo", "No such option", "see mmreplay show --help"),
        ("models shw", "'shw'", "see mmreplay models --help"),
    ],
)
def test_says_what_where_and_how(
    capfd: pytest.CaptureFixture[str], words: str, where: str, fix: str
) -> None:
    line = refusal(capfd, words)
    assert where in line
    assert fix in line.split("; ")[-1]
    assert not re.search(r": ;|\.;", line)


@pytest.mark.parametrize("kernel", ["newest", "linux-99x.y", "2.6.32", "6"])
def test_an_unknown_kernel_is_no_page_of_names(
    capfd: pytest.CaptureFixture[str], kernel: str
) -> None:
    line = refusal(capfd, f"models show {kernel}")
    assert kernel in line
    assert "mmreplay models list" in line
    assert len(line) < 160


def test_a_closed_stdout_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it when started with >&-
    main(["models", "list"])
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as stopped:
        main(["show", TRACE])
    assert stopped.value.code == 2
    assert capfd.readouterr().err.count("\n") == 1

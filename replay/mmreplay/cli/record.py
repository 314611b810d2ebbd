"""``mmreplay record``: a program, processes or the machine, with the right events."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mmreplay.errors import UserError

if TYPE_CHECKING:
    from mmreplay.recorder.api import Outcome, Wanted
    from mmreplay.recorder.cost import Calibration

_EPILOG = (
    "Without COMMAND and PID, only --print and --calibrate say something.  "
    "docs/recording.md tells how to record in production."
)


@click.command(
    "record",
    short_help="Record a program with the right events (perf, else strace).",
    context_settings={"allow_interspersed_args": False},
    epilog=_EPILOG,
)
@click.argument("program", nargs=-1, type=click.UNPROCESSED, metavar="[--] [COMMAND]...")
@click.option("-p", "--pid", "pids", metavar="PID,...", help="Attach to running processes.")
@click.option("-a", "--all", "whole_machine", is_flag=True, help="Record the whole machine.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: perf.data]",
)
@click.option("--force", is_flag=True, help="Replace a file of that name.")
@click.option(
    "--light",
    is_flag=True,
    help="Without durations of faults: cheaper, but predict refuses it, as waits are unknown.",
)
@click.option(
    "--dependencies", is_flag=True, help="Also who wakes whom (sched_waking, else futex)."
)
@click.option("--stacks", is_flag=True, help="Also call stacks: 2-3 us an event more.")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), help="End after SECONDS.")
@click.option("--max-size", metavar="SIZE", help="End before the file exceeds that size (64M, 2G).")
@click.option(
    "--keep",
    metavar="SIZE",
    help="Flight recorder: keep only the last SIZE in memory; SIGUSR2 and Ctrl-C write it.",
)
@click.option("--buffer", metavar="SIZE", help="Ring of each CPU.  [default: 16M, at most 5 %]")
@click.option(
    "--with",
    "tool",
    type=click.Choice(["auto", "perf", "strace"]),
    default="auto",
    show_default=True,
    help="What records; auto takes strace only where perf cannot.",
)
@click.option("--no-estimate", is_flag=True, help="Attach at once, without the 2 s sample.")
@click.option(
    "--print",
    "print_",
    is_flag=False,
    flag_value="here",
    metavar="[RELEASE]",
    help="Print the perf line for this machine, or for a kernel such as 5.15, and end.",
)
@click.option("--calibrate", is_flag=True, help="Measure what an event costs here, and end.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: one object on stdout; the program's own output then goes to stderr.",
)
def command(
    program: tuple[str, ...],
    pids: str | None,
    output: Path | None,
    force: bool,
    print_: str | None,
    calibrate: bool,
    style: str,
    no_estimate: bool,
    duration: float | None,
    **options: Any,
) -> None:
    """Record COMMAND, running processes (-p) or the machine (-a) for mmreplay import.

    The events are those that this kernel has.  Ctrl-C ends the recording, not mmreplay: the file is
    complete and the exit code 0, whatever the program's own was.
    """
    from mmreplay.recorder.api import Wanted, record

    wanted = Wanted(
        program=program,
        pids=_pids(pids),
        duration_s=duration,
        estimate=not no_estimate,
        **options,
    )
    if calibrate:
        _calibrate(style)
        return
    _check(wanted, needed=print_ is None)
    if print_ is not None:
        _print(wanted, print_, output, style)
        return
    outcome = record(wanted, output, force=force, data_on_stdout=style == "json", say=_say)
    if style == "json":
        click.echo(json.dumps(outcome.to_json()))
    _report(outcome)


def _say(line: str) -> None:
    click.echo(f"mmreplay: {line}", err=True)


def _pids(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f'"{text}" is no process id', where="--pid", fix="write it as 1234 or 1,2")
    return tuple(int(pid) for pid in text.split(","))


def _check(wanted: Wanted, *, needed: bool) -> None:
    given = [
        name
        for name, there in (
            ("COMMAND", wanted.program),
            ("--pid", wanted.pids),
            ("--all", wanted.whole_machine),
        )
        if there
    ]
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(given)} exclude each other",
            where="record",
            fix="record one of them; --duration ends a recording of processes",
        )
    if needed and not given:
        raise UserError(
            "nothing to record",
            where="record",
            fix="add -- COMMAND, -p PID or -a; --print shows the perf line only",
        )


def _print(wanted: Wanted, release: str, output: Path | None, style: str) -> None:
    from mmreplay.cli.show import shell_lines
    from mmreplay.recorder.api import describe
    from mmreplay.recorder.here import tracepoints
    from mmreplay.trace.header import plain_release
    from mmreplay.trace.recording import in_release

    has = None
    if release == "here":
        has = tracepoints()
        if has is None:
            raise UserError(
                "this machine's tracepoints cannot be read",
                where="--print",
                fix="run as root, or name a kernel: --print 5.15",
            )
    elif plain_release(release) is None:
        raise UserError(
            f'"{release}" is no kernel release', where="--print", fix="write it as 5.15 or 6.1.90"
        )
    recording = describe(
        wanted, has or in_release(plain_release(release)), output, here_=release == "here"
    )
    words = recording.words()
    if wanted.program and wanted.duration_s is not None:
        words.insert(0, f"timeout -s INT {wanted.duration_s:g}")
    if style == "json":
        click.echo(json.dumps({"schema": 1, "command": words, "events": recording.events.events}))
    else:
        click.echo("\n".join(shell_lines(words)))


def _report(outcome: Outcome) -> None:
    for file in outcome.files:
        size = file.stat().st_size
        _say(f"{file}: {size / 1e6:,.1f} MB" + (" of text" if outcome.tool == "strace" else ""))
    if outcome.content is not None:
        lost = f"{outcome.content.lost:,}" if outcome.content.lost else "none"
        _say(f"{outcome.content.events:,} events, {lost} lost")
    if outcome.tool == "perf":
        for line in outcome.advice:
            _say(line)
    status = outcome.ended.status
    if outcome.ended.stopped_by == "itself" and status > 0:
        _say(f"the program ended with status {status}")
    elif outcome.ended.stopped_by == "itself" and status < 0:  # perf and strace end as it did
        _say(f"the program was ended by signal {-status} ({signal.strsignal(-status)})")
    if outcome.snapshot is not None:
        _say(f"{outcome.snapshot}: the address space before")
    if outcome.content is not None and not outcome.content.events:
        return  # nothing to import
    file = outcome.files[-1]
    words = ["mmreplay", "import", str(file), "-o", str(file.with_suffix(".mmt"))]
    _say(f"next: {shlex.join(words)}")


#: Turns of --calibrate, and how long after the first one another may begin.
_CALIBRATE_TURNS: Final = 5
_CALIBRATE_S: Final = 40.0


def _calibrate(style: str) -> None:
    from mmreplay.recorder.cost import calibrate, keep
    from mmreplay.recorder.here import tracepoints

    has = tracepoints()
    if has is None:
        raise UserError(
            "the tracepoints cannot be read", where="--calibrate", fix="run as root where perf is"
        )
    found = calibrate(has, _CALIBRATE_TURNS, _say, _CALIBRATE_S)
    keep(found)
    if style == "json":
        click.echo(json.dumps(found.to_json()))
    else:
        click.echo(_table(found))


def _table(found: Calibration) -> str:
    lines = [
        f"{found.cpu}, Linux {found.kernel}, perf {found.perf}, {found.day}",
        f"one event: {found.event_ns} ns, {found.event_bytes} bytes (default set)",
        "",
        f"{'':14}{'page fault':>22}{'mmap + munmap':>26}",
        f"{'events':14}{'ns':>8}{'added':>8}{'events':>7}{'ns':>12}{'added':>8}{'events':>7}",
        f"{'(none)':14}{found.bare_fault_ns:8,.0f}{'':15}{found.bare_pair_ns:12,.0f}",
    ]
    for one in found.sets:
        lines.append(
            f"{one.name:14}{one.fault_ns:8,.0f}{one.fault_added_ns:8,.0f}"
            f"{one.events_per_fault:7.1f}{one.pair_ns:12,.0f}{one.pair_added_ns:8,.0f}"
            f"{one.events_per_pair:7.1f}"
        )
    return "\n".join(lines)

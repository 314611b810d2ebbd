"""``mmreplay record`` as library calls: describe a recording, or make it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmreplay.errors import UserError, require_parent
from mmreplay.recorder import here
from mmreplay.recorder.cost import known_cost
from mmreplay.recorder.estimate import HEAVY, SAMPLE_S, Estimate, estimate
from mmreplay.recorder.run import STRACE_LACKS, Ended, strace_argv, supervise
from mmreplay.recorder.snapshot import snapshot
from mmreplay.trace.recording import RING_PAGES, Has, Recording, choose_events

if TYPE_CHECKING:
    from mmreplay.recorder.check import Content

Say = Callable[[str], None]
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
#: A flight recorder's rings hold at least this much of each CPU.
_LEAST_RING_PAGES: Final = 16
#: perf writes the formats of the tracepoints behind the events, and counts only the events: 170 KB
#: for the largest event set (perf 6.1, Linux 6.18).
_BEHIND_EVENTS: Final = 256 << 10
#: 36 tracepoints take the kernel a second (30 ms each), and three beside other programs.
_ON_AND_OFF: Final = "the kernel turns tracepoints on and off, for some seconds if it is busy"
#: Rings of a recording of limited size take at most this share of it.
_RINGS_OF_SIZE: Final = 1 / 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to record, and how; one of ``program``, ``pids`` and ``whole_machine`` is set."""

    program: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    whole_machine: bool = False
    light: bool = False
    dependencies: bool = False
    stacks: bool = False
    duration_s: float | None = None
    max_size: str | None = None
    keep: str | None = None
    buffer: str | None = None
    tool: str = "auto"
    estimate: bool = True

    def target(self) -> tuple[str, ...]:
        """The end of perf's command line; what is not said is a placeholder."""
        whom: tuple[str, ...] = ("-a",) if self.whole_machine else ()
        if self.pids:
            whom = ("-p", ",".join(map(str, self.pids)))
        if not whom:
            return ("--", *(self.program or ("CMD",)))
        if self.duration_s is not None:
            whom = (*whom, "--", "sleep", f"{self.duration_s:g}")
        return whom


@dataclass(slots=True)
class Outcome:
    """What a recording came to."""

    tool: str
    files: list[Path]
    ended: Ended
    command: list[str]
    content: Content | None = None  # of perf's files together; strace's are not counted
    why_not_perf: str = ""
    snapshot: Path | None = None
    estimate: Estimate | None = None
    advice: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As ``mmreplay record --format json`` prints it."""
        return {
            "schema": 1,
            "tool": self.tool,
            "why_not_perf": self.why_not_perf or None,
            "files": [str(file) for file in self.files],
            "size_bytes": sum(file.stat().st_size for file in self.files),
            "events": self.content.events if self.content else None,
            "lost_events": self.content.lost if self.content else None,
            "status": self.ended.status,
            "stopped_by": self.ended.stopped_by,
            "snapshot": str(self.snapshot) if self.snapshot else None,
            "estimate": self.estimate.to_json() if self.estimate else None,
            "advice": self.advice,
            "command": self.command,
        }


def size_of(text: str, option: str) -> int:
    """Bytes of ``64M`` and its like.

    Raises
    ------
    UserError
        It is no size.
    """
    found = re.fullmatch(r"(\d+)([KMG]?)B?", text.strip(), re.IGNORECASE)
    size = int(found[1]) * _UNITS[found[2].upper()] if found else 0
    if size <= 0:
        raise UserError(f'"{text}" is no size', where=option, fix="write it as 64M or 2G")
    return size


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """How a recording of at most ``size`` bytes is made with perf.

    perf looks at the size after each piece that it writes, and once it is reached still writes
    what its rings hold.  So it is told less, but at least half; ``most`` is how large the file
    can become.
    """

    size: int
    told: int  # perf's --max-size
    most: int

    @classmethod
    def of(cls, size: int, rings: int) -> SizeLimit:
        """The limit for rings of so many bytes, all of them together."""
        behind = rings + _BEHIND_EVENTS
        told = max(size // 2, size - behind)
        told = told >> 10 << 10 or told
        return cls(size, told, told + behind)


def size_limit(wanted: Wanted, pages: int) -> SizeLimit | None:
    """The limit of a recording on this machine, None without; ``pages`` as in :func:`describe`."""
    if wanted.max_size is None:
        return None
    return SizeLimit.of(size_of(wanted.max_size, "--max-size"), here.rings_bytes(pages))


def _as_perf_writes(size: int) -> str:
    unit = next(unit for unit in ("G", "M", "K", "") if size % _UNITS[unit] == 0)
    return f"{size // _UNITS[unit]}{unit or 'B'}"


def check_name(output: Path) -> None:
    """Refuse the name of a trace for a recording.

    Raises
    ------
    UserError
        It ends in ``.mmt``.
    """
    if output.suffix == ".mmt":
        raise UserError(
            "a recording is not a trace yet",
            where=str(output),
            fix=f"record to {output.stem}.data, then "
            + shlex.join(["mmreplay", "import", f"{output.stem}.data", "-o", output.name]),
        )


def describe(wanted: Wanted, has: Has, output: Path | None = None, *, here_: bool) -> Recording:
    """The ``perf record`` of what is wanted, on a kernel that ``has`` these events.

    Parameters
    ----------
    here_:
        For this machine: rings fit its memory and CPUs, else they are 16 MiB.

    Raises
    ------
    UserError
        A size is none, or ``keep`` does not fit its other options.
    """
    if output is not None:
        check_name(output)
    pages = RING_PAGES
    if wanted.keep is not None:
        if wanted.buffer is not None or wanted.max_size is not None:
            raise UserError(
                "the flight recorder's rings are its buffer and its size",
                where="--keep",
                fix="leave out --buffer and --max-size",
            )
        pages = max(_LEAST_RING_PAGES, here.ring_pages(size_of(wanted.keep, "--keep"), total=True))
    elif here_ or wanted.buffer is not None:
        size = size_of(wanted.buffer, "--buffer") if wanted.buffer is not None else None
        pages = here.ring_pages(size)
        if size is None and wanted.max_size is not None:
            share = int(_RINGS_OF_SIZE * size_of(wanted.max_size, "--max-size"))
            pages = min(pages, max(here.FEWEST_PAGES, here.ring_pages(share, total=True)))
    limit = None
    if wanted.max_size is not None:
        told = size_limit(wanted, pages) if here_ else None
        limit = _as_perf_writes(told.told if told else size_of(wanted.max_size, "--max-size"))
    return Recording(
        choose_events(has, light=wanted.light, wakeups=wanted.dependencies),
        wanted.target(),
        wanted.stacks,
        pages,
        wanted.keep is not None,
        limit,
        str(output) if output is not None else None,
    )


def record(
    wanted: Wanted,
    output: Path | None = None,
    *,
    force: bool = False,
    data_on_stdout: bool = False,
    say: Say = lambda line: None,
) -> Outcome:
    """Record; ends with the program, the duration, the size, or SIGINT.

    Parameters
    ----------
    output:
        The file to write; by default ``perf.data``, or ``strace.txt`` where perf cannot record.
        A flight recorder adds the date and time of each dump to its name.
    force:
        Replace a file of that name.
    data_on_stdout:
        The program's own output goes to stderr.
    say:
        Gets a line at a time about what goes on.

    Raises
    ------
    UserError
        Nothing can be recorded here, or what was asked for does not fit together; or the
        recorder left no complete file.
    """
    if output is not None:
        check_name(output)
    if output == Path("-"):
        raise UserError(
            "what goes into a pipe cannot be looked at when it ends",
            where="-o -",
            fix="name a file, or run the line of --print -o - | mmreplay import -",
        )
    here.check_program(wanted.program)
    threads = here.processes(wanted.pids)
    has = here.tracepoints()
    recording = describe(wanted, has, here_=True) if has is not None else None
    if recording is not None and shutil.which("perf"):
        recording = replace(recording, no_bpf=here.perf_knows("--no-bpf-event"))
    # Counting the events of what runs already shows whether perf can record it.
    counts = bool(wanted.pids) and wanted.estimate and wanted.tool != "strace"
    if wanted.pids and not counts:
        say("trying perf on a short program")
    tool = here.choose_tool(wanted.tool, has, recording, trial=not counts)
    file = _free(output, tool, force)
    guess = taken = None
    if tool.name == "perf" and counts:
        assert recording is not None
        here.allow_events(recording, threads)
        say(f"counting events for {SAMPLE_S:.0f} s, then {_ON_AND_OFF}")
        try:
            guess = estimate(wanted.pids, recording.events, known_cost())
        except UserError:
            tool = here.choose_tool(wanted.tool, has, recording)
            if tool.name == "perf":
                raise
            file = _free(output, tool, force)
    if tool.name == "strace":
        return _with_strace(wanted, file, tool.why_not_perf, data_on_stdout, say)
    assert recording is not None
    recording = replace(recording, output=str(file))
    if guess is not None:
        for line in told(guess, light=wanted.light):
            say(line)
    if wanted.pids:
        here.allow_events(recording, threads)
        taken = file.with_name(file.name + ".snapshot")
        snapshot(wanted.pids, taken)
    limit = size_limit(wanted, recording.ring_pages)
    if limit is not None and limit.most > limit.size:
        say(
            f"the file can become {limit.most / 1e6:,.1f} MB: perf still writes what its rings "
            f"hold ({here.rings_bytes(recording.ring_pages) / 1e6:,.1f} MB)"
        )
    before = _dumps(file)
    if wanted.keep is not None:
        say("SIGUSR2 writes what the rings hold; Ctrl-C writes it and ends")
    elif not wanted.program:
        end = "; Ctrl-C ends it" if wanted.duration_s is None else f" for {wanted.duration_s:g} s"
        say(f"recording{end}; before and after it {_ON_AND_OFF}")
    timer = wanted.duration_s if wanted.program else None
    ended = supervise(
        recording.argv(),
        duration_s=timer,
        launches=bool(wanted.program),
        dumps=wanted.keep is not None,
        data_on_stdout=data_on_stdout,
    )
    files = sorted(_dumps(file) - before) if wanted.keep is not None else [file]
    if not files:
        raise UserError("perf wrote no recording", where=str(file), fix="see what perf says above")
    # Only now: loading it takes time, in which a program would not be recorded.
    from mmreplay.recorder.check import check

    outcome = Outcome("perf", files, ended, recording.argv(), snapshot=taken, estimate=guess)
    outcome.content = _total([check(one) for one in files])
    if wanted.keep is None:  # between two dumps a flight recorder loses by design
        outcome.advice = advice(outcome.content, recording)
    return outcome


def _free(output: Path | None, tool: here.Tool, force: bool) -> Path:
    """The file to write, which may not be there yet."""
    file = output or Path("perf.data" if tool.name == "perf" else "strace.txt")
    if file.exists() and not force:
        raise UserError(
            "the file exists", where=str(file), fix="add --force, or name another with -o"
        )
    require_parent(file)
    return file


def _with_strace(
    wanted: Wanted, file: Path, reason: str, data_on_stdout: bool, say: Say
) -> Outcome:
    odd = {"--keep": wanted.keep, "--max-size": wanted.max_size, "--all": wanted.whole_machine}
    for option, given in odd.items():
        if given:
            raise UserError(
                f"strace cannot do that, and perf cannot record here ({reason})",
                where=option,
                fix="run as root where perf is, or leave the option out",
            )
    say(f"recording with strace ({reason}); mmreplay doctor says what perf lacks here")
    say(STRACE_LACKS)
    target = replace(wanted, duration_s=None).target()
    argv = strace_argv(target, str(file), dependencies=wanted.dependencies)
    ended = supervise(
        argv,
        duration_s=wanted.duration_s,
        launches=bool(wanted.program),
        data_on_stdout=data_on_stdout,
    )
    if not file.exists() or file.stat().st_size == 0:
        file.unlink(missing_ok=True)  # or it is in the way the next time
        raise UserError("strace wrote nothing", where=str(file), fix="see what strace says above")
    return Outcome("strace", [file], ended, argv, why_not_perf=reason, advice=[STRACE_LACKS])


def _dumps(file: Path) -> set[Path]:
    return {one for one in file.parent.glob(f"{file.name}.[0-9]*") if one.is_file()}


def _total(parts: list[Content]) -> Content:
    from mmreplay.recorder.check import Content

    sums = [sum(values) for values in zip(*(asdict(part).values() for part in parts), strict=True)]
    return Content(*sums)


def told(guess: Estimate, *, light: bool) -> list[str]:
    """The estimate in words."""
    if not guess.cpus_used:
        return [f"it slept for these {guess.seconds:g} s: what recording takes is not known"]
    share = f"{guess.added_cpu_ratio:.1%} of the {guess.cpus_used:.2f} CPUs that it uses"
    lines = [
        f"{guess.events_per_s:,.0f} events/s ({guess.faults_per_s:,.0f} faults/s): recording "
        f"takes about {share}, and {guess.bytes_per_s / 1e6:,.2f} MB/s "
        f"({guess.cost_ns_per_event} ns an event, {guess.cost_source})"
    ]
    if guess.added_cpu_ratio > HEAVY:
        cheaper = "" if light else "; --light costs less, but predict needs durations"
        lines.append(
            f"above {HEAVY:.0%} the recording changes what it records, more so where threads "
            f"contend: record briefly (--duration){cheaper}"
        )
    return lines


def advice(content: Content, recording: Recording) -> list[str]:
    """What to do about losses, and about no events; nothing where neither matters."""
    if not content.events and not content.lost:
        return ["nothing happened in that time: record longer, or while the program works"]
    if not content.lost:
        return []
    from mmreplay.trace.summary import LOSS_REFUSE, LOSS_WARN

    if content.lost_ratio <= LOSS_WARN:
        return []
    page = 4096
    larger = _as_perf_writes(4 * recording.ring_pages * page)
    now = _as_perf_writes(recording.ring_pages * page)
    cheaper = (
        " or fewer events (--light, which predict refuses)" if recording.events.fault_ends else ""
    )
    line = (
        f"{content.lost:,} events ({content.lost_ratio:.1%}) were lost: record with larger rings "
        f"(--buffer {larger}; they had {now} for each CPU){cheaper}, to a faster place "
        "(-o /dev/shm/FILE), or leave perf a CPU of its own"
    )
    trust = "; above 5 % rates are not to be trusted" if content.lost_ratio > LOSS_REFUSE else ""
    return [line + trust]

"""Workload and thread count to loop program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from mmreplay.errors import UserError, closest
from mmreplay.schema import PAGE_SIZE
from mmreplay.workloads import steps as steps_
from mmreplay.workloads.definition import END, Role, Workload
from mmreplay.workloads.program import (
    LAST_WINDOW,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MOST_COUNTERS,
    NEXT_WINDOW,
    SAME_WINDOW,
    Distribution,
    Field,
    Kind,
    Op,
    Order,
    Picks,
    Program,
    SlotField,
    ThreadField,
)

#: More threads than this are refused: the code of each is a few kilobytes.
MOST_THREADS: Final = 4096
MOST_SLOTS: Final = 1 << 22
_COLUMNS: Final = len(Field)
_ALWAYS: Final = 1 << 32
_LOOP: Final = "loop"  # the counter of a role's loop
_WINDOWS: Final = {"next": NEXT_WINDOW, "same": SAME_WINDOW, "last": LAST_WINDOW}


def thread_counts(workload: Workload, threads: int) -> dict[str, int]:
    """How many threads of each started role there are among ``threads``.

    Raises
    ------
    UserError
        The roles do not fit that many threads.
    """
    where = workload.path or workload.name
    if not 1 <= threads <= MOST_THREADS:
        raise UserError(f"{threads} threads", where="--threads", fix=f"choose 1 to {MOST_THREADS}")
    counts: dict[str, int] = {}
    rest = None
    for name, role in workload.started().items():
        if role.threads == "rest":
            rest = name
        elif isinstance(role.threads, float):
            counts[name] = max(1, round(role.threads * threads))
        else:
            counts[name] = int(role.threads or 0)
    fixed = sum(counts.values())
    if rest is None and fixed != threads:
        raise UserError(
            f"{workload.name} has exactly {_threads(fixed)}, not {threads}",
            where=where,
            fix=f"use --threads {fixed}",
        )
    if rest is not None:
        if fixed >= threads:
            listed = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UserError(
                f"{threads} threads are too few for {workload.name} ({listed} and at least one"
                f" {rest})",
                where=where,
                fix=f"use at least --threads {fixed + 1}",
            )
        counts[rest] = threads - fixed
    return {name: counts[name] for name in workload.started()}


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def compile_workload(workload: Workload, threads: int, *, for_ever: bool = False) -> Program:
    """The loop program of ``workload`` for ``threads`` threads.

    ``for_ever``: threads that are through with their phases begin with the first one anew.

    Raises
    ------
    UserError
        The number of threads does not fit, or there would be too many pieces of memory.
    """
    return _Compiler(workload, thread_counts(workload, threads), threads, for_ever).run()


@dataclass
class _Body:
    """The code of one program while it is put together; row numbers are absolute."""

    owner: int
    role: str
    index: int
    of_role: int
    even: bool = False
    counters: dict[str, int] = field(default_factory=dict)


class _Compiler:
    def __init__(
        self, workload: Workload, counts: dict[str, int], threads: int, for_ever: bool
    ) -> None:
        self.w = workload
        self.for_ever = for_ever
        self.counts = counts
        self.asked = threads
        self.code: list[list[int]] = []
        self.programs: list[list[int]] = []
        self.regions: list[list[int]] = []
        self.slots: list[list[int]] = []
        self.files: list[list[int]] = []
        self.copies: list[list[int]] = []
        self.barriers: dict[str, int] = {}
        self.sources: list[str] = []
        self.region_names = tuple(workload.regions)
        self.file_names = tuple(workload.files)
        self.roles = tuple(workload.roles)
        self.parties = self._parties()
        self.children: dict[tuple[int, str], int] = {}
        self.shared_files: dict[str, int] = {}

    # -- the whole -----------------------------------------------------------------------
    def run(self) -> Program:
        main = self._layout(-1, Kind.MAIN, -1, 0, -1)
        plan: list[tuple[int, str, int]] = []
        for name, count in self.counts.items():
            for index in range(count):
                made = self._layout(-1, Kind.STARTED, self.roles.index(name), index, main)
                plan.append((made, name, index))
        owners = list(plan)
        for owner, name, index in owners:
            role = self.w.roles[name]
            for step in role.steps():
                if isinstance(step, steps_.Spawn | steps_.Fork):
                    key = (owner, step.role)
                    if key not in self.children:
                        kind = Kind.FORKED if isinstance(step, steps_.Fork) else Kind.SPAWNED
                        made = self._layout(owner, kind, self.roles.index(step.role), index, owner)
                        self.children[key] = made
                        plan.append((made, step.role, index))
        self._main(main, [made for made, _, _ in owners])
        for number, name, index in plan:
            self._program(number, self.w.roles[name], name, index)
        return Program(
            name=self.w.name,
            threads_asked=self.asked,
            code=_table(self.code, _COLUMNS),
            threads=_table(self.programs, len(ThreadField)),
            regions=_table(self.regions, 2),
            slots=_table(self.slots, len(SlotField)),
            files=_table(self.files, 3),
            copies=_table(self.copies, 2),
            barriers=np.array(list(self.barriers.values()), np.int64),
            sources=tuple(self.sources),
            roles=self.roles,
            region_names=self.region_names,
            file_names=self.file_names,
            touched_bytes=self._touched(),
        )

    def _parties(self) -> dict[str, int]:
        """How many threads each barrier is for."""
        found: dict[str, int] = {}
        for name, role in self.w.roles.items():
            for barrier in {s.name for s in role.steps() if isinstance(s, steps_.Barrier)}:
                found[barrier] = found.get(barrier, 0) + self.counts.get(name, 0)
        return found

    # -- memory --------------------------------------------------------------------------
    def _layout(self, owner: int, kind: Kind, role: int, index: int, parent: int) -> int:
        """A new program with its regions; its code comes later."""
        number = len(self.programs)
        process = 0
        if kind == Kind.FORKED:
            process = 1 + sum(p[ThreadField.KIND] == Kind.FORKED for p in self.programs)
        first, copied = len(self.regions), len(self.copies)
        parents = self.programs[parent][ThreadField.REGIONS] if parent >= 0 else -1
        for place, (name, region) in enumerate(self.w.regions.items()):
            if kind == Kind.SPAWNED or (kind == Kind.STARTED and region.per == "process"):
                self.regions.append(list(self.regions[parents + place]))
                continue
            if kind == Kind.MAIN and region.per == "thread":
                self.regions.append([-1, 0])
                continue
            begin = len(self.slots)
            if begin + region.count > MOST_SLOTS:
                raise UserError(
                    f"more than {MOST_SLOTS:,} pieces of memory",
                    where=self.w.path or self.w.name,
                    fix="use fewer threads, or a smaller count of its regions",
                )
            if kind == Kind.FORKED:
                theirs, count = self.regions[parents + place]
                rows = [[*self.slots[theirs + k]] for k in range(count)]
                for k, row in enumerate(rows):
                    row[SlotField.PROCESS], row[SlotField.OWNER] = process, number
                    self.copies.append([theirs + k, begin + k])
                self.slots += rows
            else:
                own = number if region.per == "thread" else -1
                file = self._file(region.file, number, index) if region.file else -1
                row = [region.size, self.region_names.index(name), file, int(region.shared)]
                row += [int(region.kind == "heap"), process, own]
                self.slots += [list(row) for _ in range(region.count)]
            self.regions.append([begin, region.count])
        row = [0] * len(ThreadField)
        row[ThreadField.LOOP] = -1
        row[ThreadField.KIND], row[ThreadField.ROLE] = kind, role
        row[ThreadField.INDEX], row[ThreadField.REGIONS] = index, first
        row[ThreadField.PARENT], row[ThreadField.PROCESS] = parent, process
        row[ThreadField.COPIES], row[ThreadField.COPIES_END] = copied, len(self.copies)
        self.programs.append(row)
        return number

    def _file(self, name: str, number: int, index: int) -> int:
        file = self.w.files[name]
        key = name if file.per == "process" else f"{name}/{number}"
        if key not in self.shared_files:
            self.shared_files[key] = len(self.files)
            self.files.append([file.size, int(file.on == "disk"), self.file_names.index(name)])
        return self.shared_files[key]

    def _touched(self) -> int:
        """Upper bound on the bytes made present: what each program's instructions can reach."""
        present = {Op.TOUCH, Op.READ}
        most = np.zeros(len(self.slots), np.int64)
        for program in self.programs:
            for row in self.code[program[ThreadField.FIRST] : program[ThreadField.END]]:
                op, flags = row[Field.OP], row[Field.FLAGS]
                fills = op == Op.MADVISE and flags in (MADV_POPULATE_READ, MADV_POPULATE_WRITE)
                fills |= op == Op.MMAP and bool(flags & MAP_POPULATE)
                if op not in present and not fills:
                    continue
                begin, count = self.regions[program[ThreadField.REGIONS] + row[Field.REGION]]
                if not count:
                    continue
                size = self.slots[begin][SlotField.MOST]
                bounded = row[Field.LENGTH] > 0 and row[Field.WINDOW] == 0
                reach = min(row[Field.OFFSET] + row[Field.MOST], size) if bounded else size
                part = most[begin : begin + count]
                np.maximum(part, reach, out=part)
        return int(most.sum()) + sum(file[0] for file in self.files)

    # -- code ----------------------------------------------------------------------------
    def _main(self, number: int, started: Sequence[int]) -> None:
        body = _Body(number, "setup", 0, 1)
        self.programs[number][ThreadField.FIRST] = len(self.code)
        self._steps(self.w.setup, body, "setup")
        for target in started:
            self._emit(Op.SPAWN, self._source(f"start of program {target}"), TARGET=target)
        for target in started:
            self._emit(Op.JOIN, self._source(f"end of program {target}"), TARGET=target)
        self._emit(Op.END, self._source("end of the program"))
        self.programs[number][ThreadField.END] = len(self.code)

    def _program(self, number: int, role: Role, name: str, index: int) -> None:
        body = _Body(number, name, index, self.counts.get(name, 1), role.even)
        row = self.programs[number]
        row[ThreadField.FIRST] = len(self.code)
        self._steps(role.once, body, f"roles.{name}.once")
        if role.loop:
            row[ThreadField.LOOP] = len(self.code)
            counter = self._counter(body, _LOOP)
            self._steps(role.loop, body, f"roles.{name}.loop")
            self._emit(
                Op.NEXT,
                self._source(f"roles.{name}.loop"),
                TARGET=row[ThreadField.LOOP],
                COUNTER=counter,
            )
        if role.chain:
            if row[ThreadField.KIND] == Kind.STARTED:
                row[ThreadField.LOOP] = len(self.code)
            self._chain(role, body, name)
        self._emit(Op.END, self._source(f"end of role {name}"))
        row[ThreadField.END] = len(self.code)

    def _chain(self, role: Role, body: _Body, name: str) -> None:
        """States one after the other, each with its jumps, the likeliest first."""
        first: dict[str, int] = {}
        jumps: list[tuple[int, str]] = []
        begins = {state.phase: word for word, state in reversed(role.chain.items())}
        follow = [begins[phase] for phase in role.phases]
        follow = [*follow[1:], follow[0] if self.for_ever else END] if follow else []
        after = dict(zip(role.phases, follow, strict=True))
        counter = self._counter(body, "(phase)") if role.phases else -1
        if role.phases:
            source = self._source(f"roles.{name}.phases")
            jumps.append(
                (self._emit(Op.JUMP, source, TIMES=_ALWAYS), begins[next(iter(role.phases))])
            )
        for word, state in role.chain.items():
            key = f"roles.{name}.chain.{word}"
            first[word] = len(self.code)
            self._steps(state.steps, body, f"{key}.steps")
            source = self._source(f"{key}.next")
            if state.phase is not None:
                over, times = len(self.code) + 2, role.phases[state.phase]
                self._emit(Op.NEXT, source, TARGET=over, COUNTER=counter, TIMES=times)
                leave = self._emit(Op.JUMP, source, TIMES=_ALWAYS)
                jumps.append((leave, after[state.phase]))
            left = sum(state.next.values())
            ordered = sorted(state.next.items(), key=lambda item: -item[1])
            for place, (target, weight) in enumerate(ordered):
                chance = 1.0 if place == len(ordered) - 1 else min(weight / left, 1.0)
                jumps.append((self._branch(body, source, chance), target))
                left -= weight
        first[END] = len(self.code)  # where the caller puts the end of the program
        for at, target in jumps:
            self.code[at][Field.TARGET] = first[target]

    def _source(self, text: str) -> int:
        if not self.sources or self.sources[-1] != text:
            self.sources.append(text)
        return len(self.sources) - 1

    def _counter(self, body: _Body, name: str) -> int:
        if len(body.counters) == MOST_COUNTERS:
            raise UserError(
                f"role {body.role} repeats more than {MOST_COUNTERS - 1} levels deep",
                where=self.w.path,
                fix="nest fewer repeats",
            )
        number = len(body.counters)
        body.counters[name] = number
        return number

    def _emit(self, op: Op, source: int, **columns: int) -> int:
        row = [0] * _COLUMNS
        row[Field.OP], row[Field.SOURCE] = op, source
        row[Field.REGION] = row[Field.AT] = row[Field.FILE] = -1
        for name, value in columns.items():
            row[Field[name]] = value
        self.code.append(row)
        return len(self.code) - 1

    def _branch(self, body: _Body, source: int, chance: float) -> int:
        even = int(body.even and chance < 1)
        return self._emit(Op.JUMP, source, TIMES=round(chance * _ALWAYS), SHAPE=even, MEAN_NS=-1)

    def _steps(self, steps: Sequence[Any], body: _Body, key: str) -> None:
        for place, step in enumerate(steps):
            self._step(step, body, f"{key}.{place}")

    def _step(self, step: Any, body: _Body, key: str) -> None:
        source = self._source(f"{key} ({step.do})")
        if isinstance(step, steps_.Repeat):
            name = step.counter or f"({len(body.counters)})"
            if name in body.counters:
                raise UserError(
                    f'{key}: the counter "{name}" is in use around it',
                    where=self.w.path,
                    fix="name it otherwise",
                )
            counter = self._counter(body, name)
            first = len(self.code)
            self._steps(step.steps, body, f"{key}.steps")
            self._emit(Op.NEXT, source, TARGET=first, COUNTER=counter, TIMES=step.times)
            del body.counters[name]
        elif isinstance(step, steps_.Choose):
            self._choose(step, body, key, source)
        elif isinstance(step, steps_.IfMapped):
            skip = self._emit(Op.UNMAPPED, source, REGION=self._region(step.on))
            self._steps(step.steps, body, f"{key}.steps")
            if step.otherwise:
                over = self._emit(Op.JUMP, source, TIMES=_ALWAYS)
                self.code[skip][Field.TARGET] = len(self.code)
                self._steps(step.otherwise, body, f"{key}.otherwise")
                self.code[over][Field.TARGET] = len(self.code)
            else:
                self.code[skip][Field.TARGET] = len(self.code)
        else:
            self._simple(step, body, key, source)

    def _choose(self, step: steps_.Choose, body: _Body, key: str, source: int) -> None:
        left = sum(branch.weight for branch in step.of)
        leave = []
        for place, branch in enumerate(step.of):
            last = place == len(step.of) - 1
            skip = -1
            if not last:
                missed = 1 - branch.weight / left
                skip = self._branch(body, source, missed)
                left -= branch.weight
            self._steps(branch.steps, body, f"{key}.of.{place}")
            if not last:
                leave.append(self._emit(Op.JUMP, source, TIMES=_ALWAYS))
                self.code[skip][Field.TARGET] = len(self.code)
        for row in leave:
            self.code[row][Field.TARGET] = len(self.code)

    def _region(self, name: str) -> int:
        return self.region_names.index(name)

    def _simple(self, step: Any, body: _Body, key: str, source: int) -> None:
        columns: dict[str, int] = {"COUNTS": getattr(step, "counts", 0)}
        on = getattr(step, "on", None)
        if on is not None:
            columns["REGION"] = self._region(on)
        if isinstance(step, steps_._OnRange):
            columns |= self._range(step, body, key)
        match step:
            case steps_.Mmap():
                op = Op.MMAP
                columns |= self._mmap(step, body)
            case steps_.Touch():
                op = Op.TOUCH
                columns["FLAGS"] = int(step.access == "write")
                columns["PROT"] = int(step.if_allowed)
                columns["TIMES"] = int(step.fresh)
            case steps_.ReadInto():
                op = Op.READ
                columns["PROT"] = int(step.if_allowed)
                columns["TIMES"] = int(step.fresh)
            case steps_.Munmap():
                op = Op.MUNMAP
            case steps_.Mprotect():
                op = Op.MPROTECT
                columns["PROT"] = step.prot
            case steps_.Madvise():
                op = Op.MADVISE
                columns["FLAGS"] = step.advice
            case steps_.Populate():
                op = Op.MADVISE
                write = step.access == "write"
                columns["FLAGS"] = MADV_POPULATE_WRITE if write else MADV_POPULATE_READ
            case steps_.Mremap():
                op = Op.MREMAP
                columns |= {"LENGTH": step.size[0], "MOST": step.size[1]}
                columns["FLAGS"] = int(step.may_move)
            case steps_.Brk():
                op = Op.BRK
                columns |= {"LENGTH": step.size, "MOST": step.size}
            case steps_.Think():
                op = Op.THINK
                columns |= {
                    "MEAN_NS": step.mean_ns,
                    "SHAPE": Distribution[step.distribution.upper()],
                    "TIMES": round(1000 * (step.sigma or 0)),
                    "FLAGS": int(step.asleep),
                    "TARGET": 1 + self.roles.index(step.woken_by) if step.woken_by else 0,
                }
            case steps_.Pick():
                op = Op.PICK
                columns["FLAGS"] = Picks[step.how.upper()]
            case steps_.Spawn() | steps_.Fork() | steps_.Join():
                op = Op[step.do.upper()]
                target = self.children.get((body.owner, step.role))
                if target is None:
                    raise UserError(
                        f"{key}: this role starts no {step.role}",
                        where=self.w.path,
                        fix="spawn or fork it in the same role",
                    )
                columns["TARGET"] = target
            case steps_.Barrier():
                op = Op.BARRIER
                parties = self.parties[step.name]
                self.barriers.setdefault(step.name, parties)
                columns["TARGET"] = list(self.barriers).index(step.name)
                columns["TIMES"] = parties
            case _:
                raise AssertionError(f"no code for {step!r}")
        self._emit(op, source, **columns)

    def _range(self, step: Any, body: _Body, key: str) -> dict[str, int]:
        region = self.w.regions[step.on]
        offset = step.first or 0
        low, high = step.size or (0, 0)
        if step.part == "own":
            share = region.size // body.of_role // PAGE_SIZE * PAGE_SIZE
            if share == 0:
                raise UserError(
                    f"{key}: region {step.on} has less than a page for each of"
                    f" {_threads(body.of_role)}",
                    where=self.w.path,
                    fix="make the region larger or use fewer threads",
                )
            offset, low, high = body.index * share, share, share
        by = step.by
        if by is None and isinstance(step, steps_.Touch | steps_.ReadInto):
            by = PAGE_SIZE
        at = -1
        if step.at in _WINDOWS:
            at = _WINDOWS[step.at]
        elif step.at is not None:
            if step.at not in body.counters:
                raise UserError(
                    f'{key}: no counter "{step.at}"{closest(step.at, body.counters)}',
                    where=self.w.path,
                    fix='name one: counter = "..." in a repeat around it; or "loop", "next",'
                    ' "same", "last"',
                )
            at = body.counters[step.at]
        if isinstance(step, steps_.Munmap) and (by is not None or step.at is not None):
            raise UserError(
                f"{key}: unmapping is not done by units",
                where=self.w.path,
                fix="leave by and at out",
            )
        return {
            "OFFSET": offset,
            "LENGTH": low,
            "MOST": high,
            "STEP": by or 0,
            "AT": at,
            "WINDOW": (step.window or PAGE_SIZE) if step.at is not None else 0,
            "ORDER": Order[step.order.upper()],
            "UNITS": step.units or 0,
        }

    def _mmap(self, step: steps_.Mmap, body: _Body) -> dict[str, int]:
        region = self.w.regions[step.on]
        begin = self.regions[self.programs[body.owner][ThreadField.REGIONS] + self._region(step.on)]
        low, high = step.size or (region.size - (step.first or 0),) * 2
        flags = MAP_SHARED if region.shared else MAP_PRIVATE
        if region.file is None:
            flags |= MAP_ANONYMOUS
        if not region.reserve:
            flags |= MAP_NORESERVE
        if step.populate:
            flags |= MAP_POPULATE
        if step.over:
            flags |= MAP_FIXED
        return {
            "OFFSET": step.first or 0,
            "LENGTH": low,
            "MOST": high,
            "PROT": region.prot if step.prot is None else step.prot,
            "FLAGS": flags,
            "FILE": self.slots[begin[0]][SlotField.FILE],
        }


def _table(rows: list[list[int]], columns: int) -> Any:
    return np.array(rows, np.int64).reshape(len(rows), columns)

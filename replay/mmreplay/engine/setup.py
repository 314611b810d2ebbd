"""Everything that both twins of the engine compute before the first event.

Costs become integers here (fixed point, so the compiled loop and the oracle agree
to the last nanosecond), CPUs are chosen, and it is decided which objects of the
plan only one thread ever touches: their locks and cache lines are *private*, and
a thread may run ahead over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmreplay.address_space.plan import WAKE_POINT, MarkSet, Plan, PlanOp, Trait
from mmreplay.engine.result import Options
from mmreplay.errors import UserError, closest
from mmreplay.jit import inlined_helper, native, pointer
from mmreplay.locking.isa import OP, PARAMS, A, B, FlushScope, Kind, Mode, Op, Operand, Scope
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: Costs are held in 1/256 ns.
COST_BITS: Final = 8
#: Multipliers of the draw table: 4096 = 1.0.
DRAW_BITS: Final = 12
DRAWS: Final = 256
MASK64: Final = (1 << 64) - 1
#: Odd constants of the mixing function (splitmix64's, Steele et al. 2014).
MIX1: Final = 0xBF58476D1CE4E5B9
MIX2: Final = 0x94D049BB133111EB
GOLDEN: Final = 0x9E3779B97F4A7C15

#: Bits of a page number in a page key: those of 57-bit addresses.
PAGE_BITS: Final = 45

#: Owner of an object in the sharing analysis.
NOBODY: Final = -1
SHARED: Final = -2

#: Where the measured threads starve, the others end a replay when they have done the plan's
#: operations so many times.
MOST_LAPS: Final = 4

#: A runnable thread's turn, times 1 + the binary logarithm of the CPUs, 8 at most
#: (sysctl_sched_base_slice, get_update_sysctl_factor, kernel/sched/fair.c@6.18).
BASE_SLICE_NS: Final = 700_000
#: Who ran so lately is not moved to a CPU that falls idle (sysctl_sched_migration_cost, task_hot).
HOT_NS: Final = 500_000

P: Final = {name: index for index, name in enumerate(PARAMS)}


def mix64(x: int) -> int:
    """splitmix64's finaliser: 64 bits to 64 bits."""
    x &= MASK64
    x = ((x ^ (x >> 30)) * MIX1) & MASK64
    x = ((x ^ (x >> 27)) * MIX2) & MASK64
    return x ^ (x >> 31)


def stream_of(seed: int, thread: int) -> int:
    """The thread's random stream; operation n draws with ``mix64(stream + n * GOLDEN)``."""
    return mix64((seed << 40) ^ (thread << 20))


@lru_cache(maxsize=1024)
def draw_table(spread: float) -> I64:
    """256 quantiles of a lognormal with mean 1 and log-deviation ``spread``, times 4096."""
    if spread <= 0:
        return np.full(DRAWS, 1 << DRAW_BITS, np.int64)
    normal = NormalDist()
    z = np.array([normal.inv_cdf((i + 0.5) / DRAWS) for i in range(DRAWS)])
    raw = np.exp(spread * z)
    table: I64 = np.rint(raw / raw.mean() * (1 << DRAW_BITS)).astype(np.int64)
    return table


def choose_cpus(machine: Machine, cores: int, placement: str) -> I32:
    """The CPUs that the replayed set runs on, in the order they are filled."""
    if cores < 1:
        raise UserError(f"{cores} cores", where="--cores", fix="give a core count of at least 1")
    if cores > machine.n_cpus:
        raise UserError(
            f"{cores} cores, but machine {machine.name} has {machine.n_cpus} CPUs",
            where="--cores",
            fix="ask for fewer cores or choose a larger machine with --machine",
        )
    if placement == "compact":
        return np.arange(cores, dtype=np.int32)
    if placement != "scatter":
        raise UserError(
            f'unknown placement "{placement}"{closest(placement, ("compact", "scatter"))}',
            where="--placement",
            fix="use compact or scatter",
        )
    # One CPU of each socket in turn, within it one of each cache, whole cores first.
    sibling: dict[int, int] = {}
    in_llc: dict[tuple[int, int], int] = {}
    llc_rank: dict[tuple[int, int], int] = {}
    llcs: dict[int, int] = {}
    keys = []
    for cpu in range(machine.n_cpus):
        core, llc = int(machine.cpu_core[cpu]), int(machine.cpu_llc[cpu])
        socket = int(machine.cpu_socket[cpu])
        smt = sibling.get(core, 0)
        sibling[core] = smt + 1
        position = in_llc.get((llc, smt), 0)
        in_llc[(llc, smt)] = position + 1
        if (socket, llc) not in llc_rank:
            llc_rank[(socket, llc)] = llcs.get(socket, 0)
            llcs[socket] = llcs.get(socket, 0) + 1
        keys.append((smt, position, llc_rank[(socket, llc)], socket, cpu))
    return np.array([key[-1] for key in sorted(keys)][:cores], dtype=np.int32)


def line_levels(machine: Machine) -> list[int]:
    """ns to move a cache line to the same core's other thread, within a cache, a socket, beyond."""
    numbers = (
        machine.line_smt_ns,
        machine.line_llc_ns,
        machine.line_socket_ns,
        machine.line_cross_ns,
    )
    return [round(number.value) for number in numbers]


def distances(machine: Machine, cpus: I32) -> I64:
    """(C, C) ns to move a cache line between the chosen CPUs; the diagonal is 0."""
    level = line_levels(machine)
    core, llc, socket = places(machine, cpus).T
    out = np.full((len(cpus), len(cpus)), level[3], np.int64)
    out[socket[:, None] == socket[None, :]] = level[2]
    out[llc[:, None] == llc[None, :]] = level[1]
    out[core[:, None] == core[None, :]] = level[0]
    np.fill_diagonal(out, 0)
    return out


def places(machine: Machine, cpus: I32) -> I64:
    """(C, 3) core, last-level cache and socket of the chosen CPUs."""
    columns = (machine.cpu_core[cpus], machine.cpu_llc[cpus], machine.cpu_socket[cpus])
    return np.stack(columns, axis=1).astype(np.int64)


def speed(machine: Machine, active: int) -> float:
    """Relative frequency with ``active`` busy cores (the first entry that covers them)."""
    for up_to, factor in machine.frequency:
        if active <= up_to:
            return factor
    return machine.frequency[-1][1] if machine.frequency else 1.0


def object_of(plan: Plan, row: int, scope: int, operand: int, mark: int) -> int:
    """Number of the object of ``scope`` that an operation means; -1 none.

    ``mark``: the place in ``plan.mark_vma`` at which EACH stands, -1 outside.
    """
    match object_scope(scope):
        case Scope.MM:
            child = int(plan.child_mm[row])
            other = operand in (Operand.CHILD, Operand.TARGET)
            return child if other and child >= 0 else int(plan.mm[row])
        case Scope.VMA:
            walks = mark >= 0 and plan.mark_set[mark] != MarkSet.TABLES
            return int(plan.mark_vma[mark] if walks else plan.vma[row])
        case Scope.TABLE:
            walks = mark >= 0 and plan.mark_set[mark] == MarkSet.TABLES
            return int(plan.mark_vma[mark] if walks else plan.table[row])
        case Scope.FILE:
            return int(plan.file[row])
        case Scope.ANON_ROOT:
            return int(plan.anon_slot[row])
    return 0


_TABLES: Final = int(MarkSet.TABLES)


@native
def _survey(  # type: ignore[no-untyped-def]
    thread_first, op, mm, child, vma, table, file, anon, mark_first, mark_vma, mark_set, dep_op,
    mm_owner, vma_owner, table_owner, file_owner, anon_owner, kinds, dependents,
):  # fmt: skip
    """Owners of all objects, the kinds that there are, what others wait for: in one pass.

    ``*_owner``: NOBODY on entry; in the end the one thread that touches the object, or SHARED.
    """
    threads, waits = len(thread_first) - 1, len(dep_op)
    thread_first, op, mm, child = pointer(thread_first), pointer(op), pointer(mm), pointer(child)
    vma, table, file, anon = pointer(vma), pointer(table), pointer(file), pointer(anon)
    mark_first, mark_vma, mark_set = pointer(mark_first), pointer(mark_vma), pointer(mark_set)
    dep_op = pointer(dep_op)
    mm_owner, vma_owner, table_owner = pointer(mm_owner), pointer(vma_owner), pointer(table_owner)
    file_owner, anon_owner = pointer(file_owner), pointer(anon_owner)
    kinds, dependents = pointer(kinds), pointer(dependents)
    for t in range(threads):
        for row in range(thread_first[t], thread_first[t + 1]):
            kinds[op[row]] = 1
            _own(mm_owner, mm[row], t)
            _own(mm_owner, child[row], t)
            _own(vma_owner, vma[row], t)
            _own(table_owner, table[row], t)
            _own(file_owner, file[row], t)
            _own(anon_owner, anon[row], t)
        for k in range(mark_first[thread_first[t]], mark_first[thread_first[t + 1]]):
            if mark_set[k] == _TABLES:
                _own(table_owner, mark_vma[k], t)
            else:
                _own(vma_owner, mark_vma[k], t)
    for k in range(waits):
        dependents[dep_op[k]] = 1


@inlined_helper
def _own(owner, x, t):  # type: ignore[no-untyped-def]
    if x >= 0 and owner[x] != t:
        owner[x] = t if owner[x] == NOBODY else SHARED


#: Scopes whose objects are numbered by a plan column.
SCOPES: Final = (Scope.MM, Scope.VMA, Scope.TABLE, Scope.FILE, Scope.ANON_ROOT, Scope.GLOBAL)
_PREFIX: Final = {
    "mm": Scope.MM,
    "vma": Scope.VMA,
    "table": Scope.TABLE,
    "ptl": Scope.TABLE,
    "node": Scope.TABLE,
    "file": Scope.FILE,
    "anon": Scope.ANON_ROOT,
    "anon_vma": Scope.ANON_ROOT,
    "anon_root": Scope.ANON_ROOT,
    "global": Scope.GLOBAL,
}


def object_scope(scope: int) -> Scope:
    """The scope whose objects a lock of ``scope`` has one instance per."""
    return Scope.TABLE if scope == Scope.NODE else Scope(scope)


def line_scopes(model: LockingModel) -> list[Scope]:
    """What there is one copy of each cache line per: by its prefix, else by its lock."""
    out = []
    for index, name in enumerate(model.lines):
        prefix = name.split(".", 1)[0]
        if prefix in _PREFIX:
            out.append(_PREFIX[prefix])
            continue
        users = [
            int(s) for s, ln in zip(model.lock_scope, model.lock_line, strict=True) if ln == index
        ]
        out.append(object_scope(users[0]) if users else Scope.GLOBAL)
    return out


def distinct(values: I64) -> I64:
    """The distinct values in order: ``np.unique``, but by sorting (its hashing is slower here)."""
    ordered = np.sort(values)
    kept = np.ones(len(ordered), np.bool_)
    kept[1:] = ordered[1:] != ordered[:-1]
    return ordered[kept]


def page_key(mm: I32, page: I64) -> I64:
    """One number for a page of an address space, ordered by address within it."""
    return (mm.astype(np.int64) << PAGE_BITS) | page


def touch_points(plan: Plan, model: LockingModel) -> tuple[NDArray[np.bool_], I64]:
    """Which operations make translations, and the pages at which their CPUs are remembered.

    Only for models that flush by what was touched.  A page is remembered where some fault
    of the plan is for it, or where a populated range begins or ends; an operation over a
    range counts at all remembered pages in it.  A plan shows who first touches a page, not
    who uses it later.
    """
    code = model.code
    if not ((code[:, OP] == Op.FLUSH) & (code[:, A] == FlushScope.TOUCHED)).any():
        return np.zeros(plan.n_ops, np.bool_), np.zeros(0, np.int64)
    populates = (plan.traits & np.uint64(int(Trait.POPULATE))) != 0
    touches = ((plan.op == PlanOp.FAULT) | (populates & (plan.op != PlanOp.NONE))) & (
        plan.pages > 0
    )
    mm = plan.mm[touches]
    ends = (plan.first_page[touches], plan.last_page[touches])
    return touches, distinct(np.concatenate([page_key(mm, page) for page in ends]))


def wake_points(plan: Plan) -> I64:
    """Rows that are no operations but points of wake-ups; without dependencies there are none."""
    if not len(plan.dep_op):
        return np.zeros(0, np.int64)
    return np.flatnonzero(plan.traits & WAKE_POINT)


def thread_of(plan: Plan, rows: I64) -> I64:
    """The thread of each row."""
    return np.searchsorted(plan.thread_first, rows, side="right") - 1


def waited_for(plan: Plan, points: I64, group: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(T,) the group's threads and all whose wake-ups these wait for, also through others."""
    found = group.copy()
    waits = plan.dep_first[points + 1] - plan.dep_first[points]
    waiter = thread_of(plan, np.repeat(points, waits))
    within = np.arange(waits.sum()) - np.repeat(np.cumsum(waits) - waits, waits)
    waker = thread_of(plan, plan.dep_op[np.repeat(plan.dep_first[points], waits) + within])
    pairs = np.unique(np.stack([waiter, waker], axis=1), axis=0)
    while len(new := pairs[found[pairs[:, 0]] & ~found[pairs[:, 1]], 1]):
        found[new] = True
    return found


@dataclass(frozen=True, slots=True)
class Analysis:
    """What plan and model decide before machine and options are known."""

    kinds: I64  # PlanOp of each kind of row that the plan has, ascending
    shared: dict[Scope, NDArray[np.bool_]]  # per scope: which objects several threads touch
    has_dependents: NDArray[np.bool_]  # (N,)
    touches: NDArray[np.bool_]  # (N,) leaves translations behind that ``flush touched`` asks for
    touch_keys: I64  # sorted page keys (:func:`page_key`) at which that is remembered


def analyse(plan: Plan, model: LockingModel) -> Analysis:
    """Check that the model can run the plan; find what is shared."""
    _check_model(plan, model)
    sizes = {
        Scope.MM: plan.n_mms,
        Scope.VMA: len(plan.vma_mm),
        Scope.TABLE: len(plan.table_initial),
        Scope.FILE: plan.n_files,
        Scope.ANON_ROOT: len(plan.anon_initial),
    }
    owners = {scope: np.full(size, NOBODY, np.int32) for scope, size in sizes.items()}
    seen = np.zeros(256, np.uint8)
    dependents = np.zeros(plan.n_ops, np.bool_)
    _survey(
        plan.thread_first, plan.op, plan.mm, plan.child_mm, plan.vma, plan.table, plan.file,
        plan.anon_slot, plan.mark_first, plan.mark_vma, plan.mark_set, plan.dep_op,
        *owners.values(), seen, dependents.view(np.uint8),
    )  # fmt: skip
    kinds = np.flatnonzero(seen)
    _check_kinds(kinds, model)
    shared = {scope: owner == SHARED for scope, owner in owners.items()}
    shared[Scope.GLOBAL] = np.array([plan.n_threads > 1])
    return Analysis(kinds, shared, dependents, *touch_points(plan, model))


@dataclass(frozen=True, slots=True)
class Setup:
    """Integers that both twins run on.  Times in ns, costs in 1/256 ns."""

    cores: int
    place: I64  # (C, 3) core, last-level cache, socket
    line_ns: list[int]  # by how far apart two CPUs are (:func:`line_levels`)
    distance: I64  # (C, C) the same as a matrix
    cost_q: I64  # (costs,)
    cost_key: NDArray[np.uint64]  # (costs,) hash of the cost's name
    cost_draw: I64  # (costs, 256)
    sleep_ns: I64  # (sleeps,)
    atomic: int
    waker: int
    woken: int
    fall: int
    switch: int
    slice: int  # a tick: when it is looked whose turn it is
    base_slice: int  # of a turn, in virtual time
    wakes_stay: bool
    most_lag: int  # that a sleeper keeps (update_entity_lag)
    poll: int
    flush_base: int
    flush_first: int
    flush_next: int
    handler: int
    flight: int  # of the interrupt that it handles
    in_group: NDArray[np.bool_]  # (T,)
    no_idle: NDArray[np.bool_]  # (T,) threads whose blocked think time is left out
    group_ops: int
    others_ops: int  # operations of other threads that end a replay; 0: none do


def prepare(plan: Plan, model: LockingModel, machine: Machine, options: Options) -> Setup:
    """Check the options and turn every cost into an integer."""
    if not options.kernel_factor > 0 or options.kernel_factor > 1e6:
        raise UserError(f"kernel factor {options.kernel_factor}", fix="give a positive factor")
    if options.load not in ("recorded", "saturated"):
        raise UserError(f'unknown load "{options.load}"', fix="use recorded or saturated")
    cpus = choose_cpus(machine, options.cores, options.placement)
    factor = options.kernel_factor / speed(machine, min(plan.n_threads, options.cores))
    cost_q, draws, keys = [], [], []
    for name in model.costs:
        number = machine.costs.get(name)
        if number is not None:
            value, spread = number.value, number.spread
        elif name in model.default_costs:
            value, spread = model.default_costs[name], 0.0
        else:
            raise UserError(
                f'machine {machine.name} has no cost "{name}"{closest(name, machine.costs)}',
                where=str(machine.path),
                fix=f"add it there, or a default to model {model.name}",
            )
        cost_q.append(round(value * factor * (1 << COST_BITS)))
        draws.append(draw_table(spread))
        keys.append(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))
    sleeps = []
    for name in model.sleeps:
        if name not in machine.sleeps:
            raise UserError(
                f'machine {machine.name} has no sleep "{name}"{closest(name, machine.sleeps)}',
                where=str(machine.path),
                fix="add it to [sleeps]",
            )
        sleeps.append(round(machine.sleeps[name].value))
    in_group = np.ones(plan.n_threads, np.bool_)
    if options.group >= 0:
        in_group = plan.thread_group == options.group
        if not in_group.any():
            raise UserError(
                f"thread group {options.group} has no threads", fix="choose a group of the plan"
            )
    points = wake_points(plan)
    no_idle = np.zeros(plan.n_threads, np.bool_)
    if options.load == "saturated":
        no_idle = waited_for(plan, points, in_group)
    counted = np.diff(plan.thread_first) - np.bincount(
        thread_of(plan, points), minlength=plan.n_threads
    )
    r = round
    tick = max(1, r(machine.slice_ns.value))
    base_slice = min(tick, BASE_SLICE_NS * (min(machine.n_cpus, 8).bit_length()))
    return Setup(
        cores=options.cores,
        place=places(machine, cpus),
        line_ns=line_levels(machine),
        distance=distances(machine, cpus),
        cost_q=np.array(cost_q, np.int64),
        cost_key=np.array(keys, np.uint64),
        cost_draw=np.array(draws, np.int64).reshape(len(draws), DRAWS),
        sleep_ns=np.array(sleeps, np.int64),
        atomic=r(machine.atomic_ns.value),
        waker=r(machine.waker_ns.value),
        woken=r(machine.woken_ns.value),
        fall=r(machine.sleep_ns.value),
        switch=r(machine.switch_ns.value),
        slice=tick,
        base_slice=base_slice,
        wakes_stay=machine.wakes_stay,
        most_lag=max(2 * base_slice, tick),
        poll=max(1, r(machine.spin_poll_ns.value)),
        flush_base=r(machine.shootdown_base_ns.value),
        flush_first=r(machine.shootdown_first_ns.value),
        flush_next=r(machine.shootdown_next_ns.value),
        handler=r(machine.shootdown_handler_ns.value),
        flight=max(
            0, r((machine.shootdown_first_ns.value - machine.shootdown_handler_ns.value) / 2)
        ),
        in_group=in_group,
        no_idle=no_idle,
        group_ops=int(counted[in_group].sum()),
        others_ops=MOST_LAPS * plan.n_ops if options.wrap else 0,
    )


def _check_model(plan: Plan, model: LockingModel) -> None:
    if plan.n_threads == 0 or plan.n_ops == 0:
        raise UserError("the plan holds no operations", fix="import a trace with memory operations")
    takes = np.isin(model.code[:, OP], (Op.LOCK, Op.TRY)) & (model.code[:, B] == Mode.WRITE)
    for row in model.code[takes]:
        if model.lock_kind[row[A]] == Kind.PIN:
            raise UserError(
                f'pin lock "{model.locks[row[A]]}" cannot be locked for writing',
                where=f"{model.path}:{row[5]}",
                fix="use mark",
            )


def _check_kinds(kinds: I64, model: LockingModel) -> None:
    for kind in kinds:
        if kind != PlanOp.NONE and model.entry[kind] < 0:
            raise UserError(
                f"model {model.name} has no program for {PlanOp(int(kind)).name.lower()}",
                where=str(model.path),
                fix="add the program, or let the model extend one that has it",
            )


def cpu_mask_words(cores: int) -> int:
    """64-bit words of a reader set over ``cores`` CPUs."""
    return (cores + 63) // 64

"""``predict`` and ``replay`` as library calls; the commands are nothing but these.

>>> from mmreplay.predict.api import predict
>>> found = predict("app.mmt", to_kernel="linux-6.18", cores=(1, 2, 4, 8))  # doctest: +SKIP
>>> found.rows[0].throughput_ops_per_s                                      # doctest: +SKIP
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from mmreplay.engine.beside import engine_compiled
from mmreplay.engine.result import Options
from mmreplay.errors import UserError, plural
from mmreplay.predict import gains, rooms
from mmreplay.predict.baseline import Costs, Ground, baseline, ground
from mmreplay.predict.checks import (
    FEW_OPERATIONS,
    check_choice,
    check_predictable,
    check_replayable,
)
from mmreplay.predict.counts import check_count
from mmreplay.predict.detail import blame_table, lock_table, op_table
from mmreplay.predict.effort import GROWN_OPS, WINDOWS, check_growth, effort, growth_of
from mmreplay.predict.explain import MUCH_SLEEP, headline, headline_row, percent, series
from mmreplay.predict.gains import Cell
from mmreplay.predict.pace import Ways, busy_means_ns, pace
from mmreplay.predict.planning import WITH_DEPENDENCIES, Planner, Wanted
from mmreplay.predict.prediction import Prediction, ProcessShare, Replay, Row, Saturation
from mmreplay.predict.processes import People, foreign_holders, people, process_shares, processes
from mmreplay.predict.recorded import LOSS_LIMIT, quality
from mmreplay.predict.runner import Progress, run_all
from mmreplay.predict.steady import Part, measured
from mmreplay.predict.sweep import Grid, Load, Placement, Side, rows_of, simulate_grid

if TYPE_CHECKING:
    from mmreplay.trace.store import Trace


def predict(
    trace: Trace | str | os.PathLike[str],
    *,
    to_kernel: str,
    cores: Sequence[int],
    from_kernel: str | None = None,
    threads: Sequence[int] | Literal["cores"] | None = None,
    scale_group: str | None = None,
    load: Literal["recorded", "saturated", "both"] = "both",
    machine: str | None = None,
    placement: Placement = "compact",
    seeds: int | None = None,
    costs: Costs | None = None,
    exact: bool = False,
    progress: Progress | None = None,
) -> Prediction:
    """What ``to_kernel`` gains over ``from_kernel`` (default: the trace's own), per core count.

    Parameters
    ----------
    trace:
        An open trace or the directory of one.
    cores, threads:
        Counts to predict for.  ``threads`` counts the threads of the scaled group; the
        default is the recorded number, ``"cores"`` one per core.
    scale_group:
        The thread group whose throughput counts and which ``threads`` clones; by default
        the one with the most lock-relevant time.
    load:
        ``recorded`` keeps idle times, ``saturated`` drops them, ``both`` gives rows for each.
    costs:
        ``trace`` (default where durations were recorded) scales the machine's costs to the
        recorded service times, ``machine`` takes them as they are.
    exact:
        Replay the whole trace instead of windows of it.
    progress:
        Called with (simulations done, simulations in all), from any thread.

    Raises
    ------
    UserError
        Anything in the arguments or the trace that a prediction cannot be made from.
    """
    begin = time.perf_counter()
    cores = _counts(cores, "--cores", "cores")
    given = threads is not None
    if threads is not None and threads != "cores":
        threads = _counts(threads, "--threads", "threads")
    check_choice(load, "--load", ("recorded", "saturated", "both"))
    check_choice(placement, "--placement", ("compact", "scatter"))
    if seeds is not None:
        check_count(seeds, "--seeds", "seeds")
    source = rooms.open_trace(trace)
    found, notes = check_replayable(source)
    to_model, to_note = rooms.kernel_model(to_kernel, "--to")
    release = source.header.kernel_release
    if from_kernel is None and release is None:
        raise UserError(
            "the recording does not name its kernel", where="--from", fix="name it with --from"
        )
    from_model, from_note = rooms.kernel_model(from_kernel or str(release), "--from")
    state, warnings = check_predictable(source, found, given)
    notes += warnings
    notes += [note for note in (from_note, to_note) if note]
    if from_model.name == to_model.name:
        notes.append(f"{to_model.name} is compared with itself: --from names another kernel.")
    few = recorded_ops if (recorded_ops := found.faults + found.calls) < FEW_OPERATIONS else None
    planner = Planner(source, scale_group)
    base = ground(source, machine, costs, max(cores), exact=exact)
    recorded_threads = planner.group_threads
    pairs: dict[int, Sequence[int]] | None = None
    if threads == "cores":
        counts: tuple[int, ...] = tuple(cores)
        pairs = {count: (count,) for count in cores}
    else:
        counts = tuple(threads) if threads is not None else (recorded_threads,)
    loads: tuple[Load, ...] = ("recorded", "saturated") if load == "both" else (load,)
    points = len(cores) * (1 if pairs else len(counts)) * len(loads)
    growth = growth_of(planner.group_share, recorded_threads, counts)
    spent = effort(points, growth, seeds=seeds, exact=exact, ops=found.ops)
    wanted = {
        (model.vma_rules, count): Wanted(model.vma_rules, count, spent.windows[count])
        for model in (from_model, to_model)
        for count in counts
    }
    with engine_compiled():
        planner.build([*wanted.values(), *([base.wanted] if base.wanted else [])])
    found_base = baseline(base, planner)
    sides = []
    for model in (from_model, to_model):
        own = base.model is not None and base.model.sha256 == model.sha256
        parts_of = {}
        for count in counts:
            bundles = planner.bundles(wanted[model.vma_rules, count])
            parts_of[count] = {
                i: measured(b, found_base.priced(b.plan), planner.group_in(b), base.recorded)
                for i, b in enumerate(bundles)
            }
        sides.append(Side(model, own, parts_of))
    old, new = sides
    drift = found_base.drift
    seed_list = tuple(range(1, spent.seeds + 1))
    grid = Grid(base.machine, cores, counts, pairs, loads, seed_list, placement)
    cells, simulations, simulated = simulate_grid(old, new, grid, progress)
    rows = rows_of(old, new, grid, cells, base.cores, recorded_threads, drift.ratio is not None)
    points_of = _saturation(rows) if len(cores) > 1 and pairs is None else []
    who = people(source)
    first_parts = old.parts[counts[0]]
    notes = [*found_base.notes, *planner.notes, *notes]
    asleep = 0.0 if planner.scope == WITH_DEPENDENCIES else _asleep(old.parts[counts[0]].values())
    notes += _caveats(base, cores, counts, recorded_threads, old, new, planner.scope)
    if asleep >= MUCH_SLEEP and "saturated" in loads:
        notes.append(
            f"At the saturated load no busy thread sleeps; in the recording they did for "
            f"{percent(asleep)} of their time, and it does not say what for. If for each other (a "
            "mutex, an interpreter's lock), the recorded load is nearer to the truth; mmreplay "
            "record --dependencies tells."
        )
    notes += _starving(old, new, rows, cells)
    spans = {
        tuple(bundle.window for bundle in planner.bundles(wanted[from_model.vma_rules, count]))
        for count in counts
    }
    if len(spans) > 1:
        notes.append(
            "The more threads, the smaller the part of the recording that is replayed: compare the "
            "kernels at one thread count, not rates between thread counts. --exact replays all."
        )
    return Prediction(
        trace=rooms.trace_name(source),
        from_kernel=from_model.name,
        to_kernel=to_model.name,
        machine=base.machine.name,
        machine_basis=base.machine_basis,
        recorded_cores=base.cores,
        recorded_threads=recorded_threads,
        group=planner.group_name,
        placement=placement,
        costs=base.costs,
        drift=drift,
        rows=tuple(rows),
        saturation=tuple(points_of),
        unattributed_share=state.unattributed_share,
        scope=planner.scope,
        processes=_shares(who, old, new, rows, cells),
        foreign_holders=foreign_holders(source, who),
        notes=tuple(dict.fromkeys(notes)),
        headline=headline(rows, from_model.name, to_model.name, drift, asleep, few),
        simulations=simulations,
        windows=len(first_parts),
        window_ops=max(
            part.recorded.n_ops - part.recorded.n_points for part in first_parts.values()
        ),
        seeds=spent.seeds,
        wall_s=time.perf_counter() - begin,
        ops_simulated=simulated,
    )


def replay(
    trace: Trace | str | os.PathLike[str],
    *,
    kernel: str,
    machine: str | None = None,
    cores: int | None = None,
    threads: int | None = None,
    scale_group: str | None = None,
    load: Load = "recorded",
    placement: Placement = "compact",
    seed: int = 1,
    costs: Costs | None = None,
    exact: bool = False,
) -> Replay:
    """One trace under one kernel, in detail: every operation replayed once.

    ``cores`` defaults to the recorded CPUs, ``threads`` (of the scaled group) to the recorded
    number.  Up to a million operations, or with ``exact``, counts and times are those of
    the whole trace; beyond, of windows of it, and a note says so.  Throughput and useful
    work rate are those of the steady state, where threads wrap around.

    Raises
    ------
    UserError
        Anything in the arguments or the trace that cannot be replayed.
    """
    if cores is not None:
        check_count(cores, "--cores", "cores")
    if threads is not None:
        check_count(threads, "--threads", "threads")
    check_choice(load, "--load", ("recorded", "saturated"))
    check_choice(placement, "--placement", ("compact", "scatter"))
    if not 0 <= seed < 2**63:
        raise UserError(f"seed {seed}", where="--seed", fix="give a number from 0 to 2^63 - 1")
    source = rooms.open_trace(trace)
    found, notes = check_replayable(source)
    model, note = rooms.kernel_model(kernel, "--kernel")
    notes += [note] if note else []
    count = cores or rooms.recorded_cores(source)
    if count is None:
        raise UserError(
            "the recording does not say on how many CPUs it ran",
            where="--cores",
            fix="give the number with --cores",
        )
    planner = Planner(source, scale_group)
    base = ground(source, machine, costs, count, exact=exact)
    asked = threads or planner.group_threads
    factor = growth_of(planner.group_share, planner.group_threads, [asked])[asked]
    check_growth(found.ops, factor, asked)
    whole = exact or found.ops * factor <= rooms.EXACT_OPS
    window = max(GROWN_OPS[1], int(rooms.EXACT_OPS / max(factor, 1)))
    wanted = Wanted(model.vma_rules, threads, None if whole else (WINDOWS, window))
    with engine_compiled():
        planner.build([wanted, *([base.wanted] if base.wanted else [])])
    found_base = baseline(base, planner)
    bundles = planner.bundles(wanted)
    parts = {
        i: measured(b, found_base.priced(b.plan), planner.group_in(b), base.recorded)
        for i, b in enumerate(bundles)
    }
    begin = time.perf_counter()
    jobs = {}
    for i, part in parts.items():
        simulator = rooms.Simulator(part.plan(load), model)
        for wrap in (False, True):
            wish = Options(count, placement, load, wrap, part.group, seed)
            jobs[i, wrap] = simulator.job(base.machine, wish)
    done = run_all(jobs)
    wall_s = time.perf_counter() - begin
    once = [done[i, False] for i in parts]
    steady = {i: done[i, True] for i in parts}
    idle = load == "recorded"
    paces = [
        (part, pace(Ways(part.work, busy_means_ns([steady[i]]), idle=idle), steady[i]))
        for i, part in parts.items()
    ]
    ops_per_ns, work_rate = (
        gains.pooled(gains.possible(value, part, way, count) for part, way in paces)
        for value in (gains.ops, gains.user)
    )
    who = people(source)
    state = quality(source)
    sound = state.lost_share <= LOSS_LIMIT
    if not sound:
        notes.append(
            f"{state.lost_share:.1%} of the events were lost, so no rates are given; record with "
            "larger rings (-m 16384)."
        )
    if not whole:
        notes.append(
            f"Counts and times are those of {plural(len(parts), 'window')}, "
            f"{sum(r.ops for r in once):,} of {found.ops * factor:,.0f} operations; "
            "--exact replays all."
        )
    simulated = sum(result.ops for result in done.values())
    return Replay(
        trace=rooms.trace_name(source),
        kernel=model.name,
        machine=base.machine.name,
        cores=count,
        threads=max(part.recorded.n_threads for part in parts.values()),
        ops=sum(result.ops for result in once),
        group=planner.group_name,
        window_ns=sum(result.window_ns for result in steady.values()),
        makespan_ns=sum(result.makespan_ns for result in once),
        throughput_ops_per_s=1e9 * ops_per_ns if sound else None,
        useful_work_rate=work_rate if sound else None,
        baseline_drift_ratio=found_base.drift.ratio,
        baseline_drift_note=found_base.drift.note,
        locks=lock_table(model, once),
        by_op=op_table(once),
        blame=blame_table(model, once),
        processes=processes(who, bundles, once, model.locks),
        foreign_holders=foreign_holders(source, who),
        wall_s=wall_s,
        ops_per_s=simulated / wall_s if wall_s > 0 else 0.0,
        notes=tuple(dict.fromkeys([*found_base.notes, *planner.notes, *notes])),
    )


def _saturation(rows: Sequence[Row]) -> list[Saturation]:
    """Where each kernel stops gaining, per load and thread count."""
    found = []
    for mine in series(rows):
        for kernel in dict.fromkeys(row.kernel for row in mine):
            one = [row for row in mine if row.kernel == kernel]
            capacity = [
                row
                for row in rows
                if (row.kernel, row.threads) == (kernel, one[0].threads)
                and row.load == "saturated" != one[0].load
            ]
            found.append(gains.saturation(one, capacity))
    return found


def _starving(
    old: Side, new: Side, rows: Sequence[Row], cells: Mapping[Hashable, Cell]
) -> list[str]:
    """Where replays had to be ended because none of the measured threads was ever through."""
    notes = []
    for name, side in (("old", old), ("new", new)):
        mine = [row for row in rows if row.kernel == side.model.name]
        starved = {
            row.cores
            for row in mine
            if gains.starves(cells[name, row.threads, row.cores, row.load])
        }
        if starved:
            notes.append(
                f"With {side.model.name} on {', '.join(map(str, sorted(starved)))} cores the "
                "measured threads starve: others keep the lock among themselves. How much depends "
                'on where the scheduler puts woken threads: read such a gain as "much".'
            )
    return notes


def _shares(
    who: People, old: Side, new: Side, rows: Sequence[Row], cells: Mapping[Hashable, Cell]
) -> tuple[ProcessShare, ...]:
    """Per process, at the point that the headline is about."""
    row = headline_row(rows, new.model.name)
    sides = {
        side.model.name: (side.model.locks, cells[name, row.threads, row.cores, row.load])
        for name, side in (("old", old), ("new", new))
    }
    return process_shares(who, sides)


def _counts(values: Sequence[int], option: str, what: str) -> tuple[int, ...]:
    if not values:
        raise UserError(f"the list of {what} is empty", where=option, fix="write for example 1,2,4")
    return tuple(sorted({check_count(int(value), option, what) for value in values}))


def _asleep(parts: Iterable[Part]) -> float:
    """Share of the busy threads' time in which they slept, the windows weighted alike."""
    shares = [part.asleep for part in parts]
    return sum(shares) / len(shares)


def _caveats(
    base: Ground,
    cores: Sequence[int],
    counts: Sequence[int],
    recorded_threads: int,
    old: Side,
    new: Side,
    scope: str,
) -> list[str]:
    notes = []
    if base.cores is not None and max(cores) > base.cores:
        notes.append(
            f"The recording ran on {base.cores} CPUs: more cores are extrapolated"
            + (
                f", and its {recorded_threads} threads cannot fill more than "
                f"{recorded_threads} (--threads scales them out)."
                if max(counts) < max(cores)
                else "."
            )
        )
    if not (old.recorded and new.recorded):
        others = dict.fromkeys(s.model.name for s in (old, new) if not s.recorded)
        notes.append(
            f"Ranges: over seeds and windows, and ±15 % for what else differs in "
            f"{' and '.join(others)}, which the trace was not recorded on."
        )
    if any(part.in_turn for parts in old.parts.values() for part in parts.values()):
        notes.append(
            "Some of the busy threads began when others were through. The rate at the recorded "
            "load is that of those that had begun, as if all ran then; at the saturated load all "
            "begin together."
        )
    if scope == WITH_DEPENDENCIES:
        notes.append("Threads wait for each other where they did in the recording.")
    else:
        notes.append(
            "Only waits in the memory map are modelled: what threads waited for each other stays "
            "as recorded, so a gain through waiting threads is a lower bound, and scaling out an "
            "upper one."
        )
    return notes

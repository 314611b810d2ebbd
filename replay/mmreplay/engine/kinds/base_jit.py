"""Compiled twin of ``base.py``, and the event queue and CPUs that all kinds use.

State lives in one flat array ``m`` (see ``layout.py``).  Event keys are
``time << shift | thread``; over the keys of all threads stands a tree of minima, eight
to a node (the children of node n are 8 n + 1 to 8 n + 8), whose root is the next event.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

from mmreplay.engine.layout import *
from mmreplay.engine.setup import HOT_NS
from mmreplay.jit import borrowing_helper, inlined_helper


@inlined_helper
def least(m, first):  # type: ignore[no-untyped-def]
    """The least of eight values that lie side by side."""
    a = min(m[first], m[first + 1])
    b = min(m[first + 2], m[first + 3])
    c = min(m[first + 4], m[first + 5])
    d = min(m[first + 6], m[first + 7])
    return min(min(a, b), min(c, d))


@inlined_helper
def set_key(m, t, key):  # type: ignore[no-untyped-def]
    """Set the key of the thread's next event, and the least key of each node above."""
    queue, node = m[H_QUEUE], m[H_LEAF] + t
    before = m[queue + node]
    m[queue + node] = key
    if key < before:
        while node > 0:
            node = (node - 1) >> 3
            if m[queue + node] <= key:
                break
            m[queue + node] = key
    elif key > before:
        while node > 0:
            node = (node - 1) >> 3
            if m[queue + node] != before:
                break
            m[queue + node] = least(m, queue + (node << 3) + 1)


@borrowing_helper
def set_time(m, t, time):  # type: ignore[no-untyped-def]
    """Set the thread's next event; ``NEVER``: somebody else will."""
    set_key(m, t, NEVER if time == NEVER else (time << m[H_SHIFT]) | t)


@borrowing_helper
def sooner(m, t, time):  # type: ignore[no-untyped-def]
    if m[m[H_QUEUE] + m[H_LEAF] + t] > (time << m[H_SHIFT]) | t:
        set_time(m, t, time)


@borrowing_helper
def at(m, t, state, time):  # type: ignore[no-untyped-def]
    m[HEADER + t * TF + T_STATE] = state
    set_time(m, t, time)


@inlined_helper
def distance(m, a, b):  # type: ignore[no-untyped-def]
    """What moving a cache line between two different CPUs takes (setup.distances)."""
    x, y = m[H_CORE] + a * CF, m[H_CORE] + b * CF
    apart = H_DIST_0
    apart += m[x + C_CORE] != m[y + C_CORE]
    apart += m[x + C_LLC] != m[y + C_LLC]
    apart += m[x + C_SOCKET] != m[y + C_SOCKET]
    return m[apart]


@inlined_helper
def write_line(m, line, cpu, at_ns, owned_ns):  # type: ignore[no-untyped-def]
    """Line._write; a negative line is private."""
    if line < 0:
        return at_ns + owned_ns
    begin = max(at_ns, m[line + L_FREE])
    cost = owned_ns
    owner = m[line + L_OWNER]
    last = m[line + L_LAST_READER]
    if owner >= 0:
        if owner != cpu:
            cost = distance(m, owner, cpu)
        elif last >= 0 and last != cpu:
            cost = distance(m, last, cpu)
    m[line + L_OWNER] = cpu
    if last >= 0:
        m[line + L_LAST_READER] = -1
        for w in range(line + L_READERS, line + m[H_LSIZE]):
            m[w] = 0
    m[line + L_FREE] = begin + cost
    return begin + cost


@borrowing_helper
def line_write(m, line, cpu, at_ns, owned_ns):  # type: ignore[no-untyped-def]
    return write_line(m, line, cpu, at_ns, owned_ns)


@borrowing_helper
def line_rmw(m, line, cpu, at_ns):  # type: ignore[no-untyped-def]
    return line_write(m, line, cpu, at_ns, m[H_ATOMIC])


@borrowing_helper
def line_read(m, line, cpu, at_ns):  # type: ignore[no-untyped-def]
    if line < 0:
        return at_ns
    owner = m[line + L_OWNER]
    if owner < 0 or owner == cpu:
        return at_ns
    w = line + L_READERS + (cpu >> 6)
    bit = 1 << (cpu & 63)
    if m[w] & bit:
        return at_ns
    m[w] |= bit
    m[line + L_LAST_READER] = cpu
    return max(at_ns, m[line + L_FREE]) + distance(m, owner, cpu)


@borrowing_helper
def stat(m, lock, field, by):  # type: ignore[no-untyped-def]
    m[m[H_STAT] + lock * SF + field] += by


@borrowing_helper
def _charge(m, r):  # type: ignore[no-untyped-def]
    """Lock.shares of the time since the last change, added to the cumulated sums."""
    now = m[H_NOW]
    span = now - m[r + I_LAST]
    m[r + I_LAST] = now
    if span == 0 or m[r + I_WAITING] == 0:
        return
    kinds = m[H_KINDS]
    total = r + I_BY_KIND + kinds
    readers = m[r + I_READERS]
    if m[r + I_WRITER] >= 0:
        m[total + m[r + I_WKIND]] += span
    elif readers == 0:
        m[total + kinds] += span
    else:
        left = span
        first = -1
        for k in range(kinds):
            count = m[r + I_BY_KIND + k]
            if count == readers:  # the usual case: no division
                m[total + k] += span
                return
            if count:
                if first < 0:
                    first = k
                share = span * count // readers
                m[total + k] += share
                left -= share
        m[total + first] += left


@inlined_helper
def advance(m, r):  # type: ignore[no-untyped-def]
    if m[r + I_WAITING] == 0:
        m[r + I_LAST] = m[H_NOW]
    else:
        _charge(m, r)


@inlined_helper
def add_reader(m, r, kind):  # type: ignore[no-untyped-def]
    advance(m, r)
    m[r + I_READERS] += 1
    m[r + I_BY_KIND + kind] += 1


@inlined_helper
def drop_reader(m, r, kind):  # type: ignore[no-untyped-def]
    advance(m, r)
    m[r + I_READERS] -= 1
    m[r + I_BY_KIND + kind] -= 1


@borrowing_helper
def set_writer(m, r, t):  # type: ignore[no-untyped-def]
    advance(m, r)
    m[r + I_WRITER] = t
    if t >= 0:
        m[r + I_WKIND] = m[HEADER + t * TF + T_KIND]


@borrowing_helper
def enter(m, r, t):  # type: ignore[no-untyped-def]
    _charge(m, r)
    m[r + I_WAITING] += 1
    kinds = m[H_KINDS]
    snap = m[H_SNAP] + t * (kinds + 1)
    total = r + I_BY_KIND + kinds
    for k in range(kinds + 1):
        m[snap + k] = m[total + k]
    b = HEADER + t * TF
    m[b + T_WAIT_FROM] = m[H_NOW]
    m[b + T_GRANTED] = m[H_NOW]


@borrowing_helper
def leave(m, r, t):  # type: ignore[no-untyped-def]
    _charge(m, r)
    m[r + I_WAITING] -= 1
    kinds = m[H_KINDS]
    b = HEADER + t * TF
    snap = m[H_SNAP] + t * (kinds + 1)
    total = r + I_BY_KIND + kinds
    out = m[H_BLAME] + m[r + I_LOCK] * (kinds + 1) * kinds + m[b + T_KIND]
    for k in range(kinds + 1):
        m[out + k * kinds] += m[total + k] - m[snap + k]
    m[b + T_GRANTED] = m[H_NOW]


@borrowing_helper
def end_wait(m, r, t, write):  # type: ignore[no-untyped-def]
    kinds = m[H_KINDS]
    now = m[H_NOW]
    b = HEADER + t * TF
    lock = m[r + I_LOCK]
    m[m[H_BLAME] + (lock * (kinds + 1) + kinds) * kinds + m[b + T_KIND]] += now - m[b + T_GRANTED]
    wait = now - m[b + T_WAIT_FROM]
    m[b + T_WAIT] += wait
    m[m[H_TWAIT] + t * m[H_LOCKS] + lock] += wait
    stat(m, lock, S_WRITE_WAIT if write else S_READ_WAIT, wait)


@inlined_helper
def owned_by(m, t):  # type: ignore[no-untyped-def]
    """Where the rwsems stand that the thread holds for writing, ``T_OWNED`` of them."""
    return m[H_OWNED] + t * 2 * m[H_LOCKS]


@inlined_helper
def core_of(m, t):  # type: ignore[no-untyped-def]
    """The record of the CPU that a thread runs on."""
    return m[H_CORE] + m[HEADER + t * TF + T_CPU] * CF


@borrowing_helper
def need_resched(m, t):  # type: ignore[no-untyped-def]
    c = core_of(m, t)
    if m[c + C_RESCHED]:
        return True
    return m[c + C_QUEUED] > 0 and m[H_NOW] >= m[HEADER + t * TF + T_SLICE_END]


@borrowing_helper
def update_virtual(m, b):  # type: ignore[no-untyped-def]
    """Processors._update of a running thread."""
    ran = max(0, m[H_NOW] - m[b + T_V_FROM])
    m[b + T_V] += ran
    m[b + T_V_FROM] += ran


@borrowing_helper
def average_virtual(m, c):  # type: ignore[no-untyped-def]
    """Processors._average_v."""
    n, total = m[c + C_QUEUED], m[c + C_QUEUE_V]
    if m[c + C_RUNNING] >= 0:
        n += 1
        total += m[HEADER + m[c + C_RUNNING] * TF + T_V]
    return total // n if n else m[c + C_LAST_V]


@borrowing_helper
def rq_push(m, t, c):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    m[b + T_RQ_NEXT] = m[c + C_QUEUE]
    m[c + C_QUEUE] = t
    m[c + C_QUEUED] += 1
    m[c + C_QUEUE_V] += m[b + T_V]
    m[H_QUEUED] += 1


@borrowing_helper
def rq_remove(m, t, c):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    if m[c + C_QUEUE] == t:
        m[c + C_QUEUE] = m[b + T_RQ_NEXT]
    else:
        u = m[c + C_QUEUE]
        while m[HEADER + u * TF + T_RQ_NEXT] != t:
            u = m[HEADER + u * TF + T_RQ_NEXT]
        m[HEADER + u * TF + T_RQ_NEXT] = m[b + T_RQ_NEXT]
    m[c + C_QUEUED] -= 1
    m[c + C_QUEUE_V] -= m[b + T_V]
    m[H_QUEUED] -= 1


@borrowing_helper
def pick(m, c):  # type: ignore[no-untyped-def]
    """Processors._pick."""
    average = average_virtual(m, c)
    best, best_fits, soonest = -1, False, 0
    t = m[c + C_QUEUE]
    while t >= 0:
        b = HEADER + t * TF
        fits = m[b + T_V] <= average
        due = m[b + T_DEADLINE]
        better = best < 0 or (fits and not best_fits)
        if not better and fits == best_fits:
            better = due < soonest or (due == soonest and t < best)
        if better:
            best, best_fits, soonest = t, fits, due
        t = m[b + T_RQ_NEXT]
    return best


@borrowing_helper
def dispatch(m, t, cpu, at_ns):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    c = m[H_CORE] + cpu * CF
    m[c + C_RUNNING] = t
    m[c + C_RESCHED] = 0
    m[b + T_CPU] = cpu
    m[b + T_LAST_CPU] = cpu
    m[b + T_V_FROM] = at_ns
    m[b + T_SLICE_END] = at_ns + m[H_SLICE]
    m[c + C_MM] = m[b + T_MM]
    at(m, t, m[b + T_AFTER], at_ns)


@borrowing_helper
def select_cpu(m, t):  # type: ignore[no-untyped-def]
    """Processors._select."""
    core = m[H_CORE]
    cpu = m[HEADER + t * TF + T_LAST_CPU]
    if m[core + cpu * CF + C_RUNNING] < 0 or m[H_WAKES_STAY]:
        return cpu
    if m[H_IDLE_CORES] > 0:
        cpu = 0
        while m[core + cpu * CF + C_RUNNING] >= 0:
            cpu += 1
    return cpu


@borrowing_helper
def place(m, t, cpu):  # type: ignore[no-untyped-def]
    """Processors._place."""
    b, c = HEADER + t * TF, m[H_CORE] + cpu * CF
    n = m[c + C_QUEUED]
    if m[c + C_RUNNING] >= 0:
        update_virtual(m, HEADER + m[c + C_RUNNING] * TF)
        n += 1
    average = average_virtual(m, c)
    lag = max(-m[H_MOST_LAG], min(m[H_MOST_LAG], m[b + T_LAG]))
    if lag < 0 and cpu == m[b + T_LAST_CPU]:
        if m[b + T_V] > average:
            return
        lag = 0
    m[b + T_V] = average - (lag * (n + 1) // n if n else 0)
    m[b + T_DEADLINE] = m[b + T_V] + m[H_BASE_SLICE]


@borrowing_helper
def runnable(m, t):  # type: ignore[no-untyped-def]
    cpu = select_cpu(m, t)
    place(m, t, cpu)
    c = m[H_CORE] + cpu * CF
    curr = m[c + C_RUNNING]
    if curr < 0:
        m[H_IDLE_CORES] -= 1
        m[H_IDLE_NS] += m[H_NOW] - m[c + C_IDLE_SINCE]
        dispatch(m, t, cpu, m[H_NOW])
        return
    set_time(m, t, NEVER)
    rq_push(m, t, c)
    b = HEADER + curr * TF
    preempts = m[b + T_V] >= m[b + T_DEADLINE]
    if not preempts and m[b + T_V] > average_virtual(m, c):
        preempts = pick(m, c) == t
    if preempts:
        m[c + C_RESCHED] = 1
        state = m[b + T_STATE]
        if state == SPIN or state == OSQ or state == REVOKE or state == HANDOFF_SPIN:
            sooner(m, curr, m[H_NOW] + m[H_POLL])


@borrowing_helper
def pull(m, t, source, cpu, cost_ns):  # type: ignore[no-untyped-def]
    """Processors._pull."""
    b, c = HEADER + t * TF, m[H_CORE] + cpu * CF
    rq_remove(m, t, source)
    left = m[b + T_DEADLINE] - m[b + T_V]
    m[b + T_V] = m[c + C_LAST_V]
    m[b + T_DEADLINE] = m[b + T_V] + left
    m[H_IDLE_CORES] -= 1
    m[H_IDLE_NS] += m[H_NOW] - m[c + C_IDLE_SINCE]
    dispatch(m, t, cpu, m[H_NOW] + cost_ns)


@borrowing_helper
def schedule(m, t):  # type: ignore[no-untyped-def]
    """Processors.schedule."""
    b, c = HEADER + t * TF, core_of(m, t)
    update_virtual(m, b)
    m[c + C_RESCHED] = 0
    over = m[b + T_V] >= m[b + T_DEADLINE]
    if over:
        m[b + T_DEADLINE] = m[b + T_V] + m[H_BASE_SLICE]
    ticks = m[H_NOW] >= m[b + T_SLICE_END]
    if ticks:
        m[b + T_SLICE_END] = m[H_NOW] + m[H_SLICE]
    if m[c + C_QUEUED] == 0:
        return False
    if ticks and m[H_IDLE_CORES] > 0:
        cpu = 0
        while m[m[H_CORE] + cpu * CF + C_RUNNING] >= 0:
            cpu += 1
        pull(m, pick(m, c), c, cpu, m[H_WOKEN])
        if m[c + C_QUEUED] == 0:
            return False
    if m[b + T_V] > average_virtual(m, c):
        return True
    return over and m[b + T_DEADLINE] >= m[HEADER + pick(m, c) * TF + T_DEADLINE]


@borrowing_helper
def preempt(m, t):  # type: ignore[no-untyped-def]
    """Processors.preempt."""
    c = core_of(m, t)
    at(m, t, OFF, NEVER)
    update_virtual(m, HEADER + t * TF)
    rq_push(m, t, c)
    yield_cpu(m, t)


@borrowing_helper
def stop_if_all_spin(m):  # type: ignore[no-untyped-def]
    """Processors.stop_if_all_spin."""
    m[H_STILL] += 1
    if m[H_QUEUED] > 0:
        m[H_STILL] = 0
    for t in range(m[H_THREADS]):
        b = HEADER + t * TF
        key = m[m[H_QUEUE] + m[H_LEAF] + t]
        state = m[b + T_STATE]
        spins = state == SPIN or state == OSQ or state == REVOKE
        if key != NEVER and not (spins and key >> m[H_SHIFT] == m[b + T_SLICE_END]):
            m[H_STILL] = 0
    if m[H_STILL] > m[H_THREADS]:
        for t in range(m[H_THREADS]):
            set_time(m, t, NEVER)


@borrowing_helper
def spin_on(m, t, state):  # type: ignore[no-untyped-def]
    """Processors.spin_on."""
    b = HEADER + t * TF
    if need_resched(m, t):
        m[b + T_AFTER] = state
        preempt(m, t)
        return
    if m[H_NOW] >= m[b + T_SLICE_END]:
        m[b + T_SLICE_END] = m[H_NOW] + m[H_SLICE]
    at(m, t, state, m[b + T_SLICE_END])
    stop_if_all_spin(m)


@borrowing_helper
def notify_spinner(m, r, at_ns):  # type: ignore[no-untyped-def]
    if m[r + I_OSQ_HEAD] >= 0:
        sooner(m, m[r + I_OSQ_HEAD], at_ns + m[H_POLL])


@borrowing_helper
def notify_handoff_spinner(m, r, at_ns):  # type: ignore[no-untyped-def]
    head = m[r + I_Q_HEAD]
    if head >= 0 and m[HEADER + head * TF + T_STATE] == HANDOFF_SPIN:
        sooner(m, head, at_ns + m[H_POLL])


@borrowing_helper
def yield_cpu(m, t):  # type: ignore[no-untyped-def]
    """The second half of Processors.release_cpu: who runs next."""
    b = HEADER + t * TF
    cpu = m[b + T_CPU]
    c = m[H_CORE] + cpu * CF
    m[c + C_RUNNING] = -1
    m[b + T_RAN] = m[H_NOW]
    m[b + T_CPU] = -1
    if m[c + C_QUEUED]:
        u = pick(m, c)
        rq_remove(m, u, c)
        dispatch(m, u, cpu, m[H_NOW] + m[H_SWITCH])
    else:
        m[c + C_RESCHED] = 0
        m[c + C_IDLE_SINCE] = m[H_NOW]
        m[H_IDLE_CORES] += 1
        if m[H_QUEUED]:
            pull_cold(m, cpu)
    for k in range(m[b + T_OWNED]):
        r = m[owned_by(m, t) + k]
        notify_spinner(m, r, m[H_NOW])
        notify_handoff_spinner(m, r, m[H_NOW])


@borrowing_helper
def pull_cold(m, cpu):  # type: ignore[no-untyped-def]
    """Processors._pull_cold."""
    best, source, longest = -1, -1, m[H_NOW] - HOT_NS
    for other in range(m[H_CORES]):
        c = m[H_CORE] + other * CF
        t = m[c + C_QUEUE]
        while t >= 0:
            ran = m[HEADER + t * TF + T_RAN]
            if ran < longest or (ran == longest and (best < 0 or t < best)):
                best, source, longest = t, c, ran
            t = m[HEADER + t * TF + T_RQ_NEXT]
    if best >= 0:
        pull(m, best, source, cpu, m[H_SWITCH])


@borrowing_helper
def release_cpu(m, t):  # type: ignore[no-untyped-def]
    b = HEADER + t * TF
    if m[b + T_STATE] == FALL:
        m[b + T_STATE] = OFF
    c = core_of(m, t)
    update_virtual(m, b)
    average = average_virtual(m, c)
    m[b + T_LAG] = average - m[b + T_V]
    m[c + C_LAST_V] = average
    yield_cpu(m, t)


@borrowing_helper
def wake_up(m, t, state, at_ns):  # type: ignore[no-untyped-def]
    """Lock.wake_up, Processors.wake_costs."""
    b = HEADER + t * TF
    if m[b + T_CPU] < 0:
        m[b + T_AFTER] = state
        if m[m[H_CORE] + select_cpu(m, t) * CF + C_RUNNING] < 0:
            at_ns += m[H_WAKER]
            at(m, t, OFF, at_ns + m[H_WOKEN])
        else:
            at_ns += min(m[H_WAKER], m[H_SWITCH])
            at(m, t, OFF, at_ns)
    else:
        at(m, t, state, max(at_ns, m[b + T_AWAKE]))
    return at_ns

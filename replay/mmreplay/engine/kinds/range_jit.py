"""Compiled twin of ``range.py``; see there.

An instance has a record of ``EF`` words for every thread, from ``m[r + I_MORE]`` on: the
thread's entry.  Entries are linked in the order they came, by thread number.
"""
# ruff: noqa: F403, F405

from __future__ import annotations

from mmreplay.engine.kinds.base_jit import *
from mmreplay.engine.kinds.range import LAST_PAGE, LEVEL_BITS, LEVELS, Cost, Round
from mmreplay.engine.layout import *
from mmreplay.jit import borrowing_helper
from mmreplay.locking.isa import Operand

PER_HOLDER, PER_SLOT = int(Cost.PER_HOLDER), int(Cost.PER_SLOT)
ROUND_PAGE, ROUND_SLOT, ROUND_NODE = int(Round.PAGE), int(Round.SLOT), int(Round.PT_NODE)
AT_PAGE, AT_VMA, AT_VMA1 = int(Operand.PAGE), int(Operand.VMA), int(Operand.VMA1)
AT_NODE, AT_ALL = int(Operand.NODE), int(Operand.ALL)
LOW_WORD = (1 << 32) - 1


@borrowing_helper
def page_of(m, words, row, column):  # type: ignore[no-untyped-def]
    """One of the page columns (``G_*``) of an operation."""
    at = m[H_PAGES] + (row << 3) + 2 * column
    return (words[at + 1] << 32) | (words[at] & LOW_WORD)


@borrowing_helper
def covering_level(first, last):  # type: ignore[no-untyped-def]
    level = 1
    while first >> (LEVEL_BITS * level) != last >> (LEVEL_BITS * level):
        level += 1
    return level


@borrowing_helper
def slots_of(first, last):  # type: ignore[no-untyped-def]
    count = 0
    while first <= last:
        size = 1
        while first & ((size << LEVEL_BITS) - 1) == 0 and first + (size << LEVEL_BITS) - 1 <= last:
            size <<= LEVEL_BITS
        first += size
        count += 1
    return count


@borrowing_helper
def set_span(m, words, d, e, row, operand):  # type: ignore[no-untyped-def]
    """The range of the entry at ``e``, widened as the lock rounds."""
    first = page_of(m, words, row, G_FIRST)
    last = max(first, page_of(m, words, row, G_LAST))
    if operand == AT_PAGE:
        last = first
    elif operand == AT_VMA or operand == AT_VMA1:
        if page_of(m, words, row, G_VMA_FIRST) >= 0:
            more = 1 if operand == AT_VMA1 else 0
            first = max(0, page_of(m, words, row, G_VMA_FIRST) - more)
            last = min(LAST_PAGE, page_of(m, words, row, G_VMA_LAST) + more)
    elif operand >= AT_ALL:
        first = 0
        last = LAST_PAGE
    if operand == AT_NODE or m[d + D_ROUND] == ROUND_NODE:
        bits = LEVEL_BITS * covering_level(first, last)
        first = first >> bits << bits
        last = (((last >> bits) + 1) << bits) - 1
    m[e + E_FIRST] = first
    m[e + E_LAST] = last
    m[e + E_REACH] = first - 1


@borrowing_helper
def conflict(m, e, o):  # type: ignore[no-untyped-def]
    if m[e + E_MODE] == 0 and m[o + E_MODE] == 0:
        return False
    return m[e + E_FIRST] <= m[o + E_LAST] and m[o + E_FIRST] <= m[e + E_LAST]


@borrowing_helper
def range_limit(m, r, d, t):  # type: ignore[no-untyped-def]
    """Range._limit of the thread's entry."""
    more = m[r + I_MORE]
    e = more + t * EF
    leftwards, fair = m[d + D_LEFTWARDS], m[d + D_FAIR]
    limit = m[e + E_LAST]
    earlier = True
    u = m[r + I_Q_HEAD]
    while u >= 0:
        o = more + u * EF
        if u == t:
            earlier = False
        elif conflict(m, e, o):
            if m[o + E_FIRST] <= m[o + E_REACH] and m[e + E_FIRST] <= m[o + E_REACH]:
                limit = min(limit, max(m[e + E_FIRST], m[o + E_FIRST]) - 1)
            if fair and earlier and m[o + E_REACH] < m[o + E_LAST]:
                wanted = m[o + E_REACH] + 1
                if not leftwards:
                    limit = m[e + E_FIRST] - 1
                elif max(m[e + E_FIRST], m[e + E_REACH] + 1) <= wanted and wanted <= limit:
                    limit = wanted - 1
        u = m[o + E_NEXT]
    if leftwards or limit == m[e + E_LAST]:
        return limit
    return m[e + E_FIRST] - 1


@borrowing_helper
def count_blockers(m, r, d, t):  # type: ignore[no-untyped-def]
    """Range.blockers: how many threads, and by kind of operation from H_BLOCKERS on."""
    more, counts = m[r + I_MORE], m[H_BLOCKERS]
    for k in range(m[H_KINDS]):
        m[counts + k] = 0
    leftwards = m[d + D_LEFTWARDS]
    while True:
        e = more + t * EF
        first, last = m[e + E_FIRST], m[e + E_LAST]
        if leftwards:
            first = last = m[e + E_REACH] + 1
        found = 0
        ahead = -1
        earlier = True
        u = m[r + I_Q_HEAD]
        while u >= 0:
            o = more + u * EF
            if u == t:
                earlier = False
            elif conflict(m, e, o):
                if first <= m[o + E_REACH] and m[o + E_FIRST] <= last:
                    found += 1
                    m[counts + m[HEADER + u * TF + T_KIND]] += 1
                if earlier and ahead < 0 and m[o + E_REACH] < m[o + E_LAST]:
                    if not leftwards or m[o + E_REACH] + 1 == first:
                        ahead = u
            u = m[o + E_NEXT]
        if found or ahead < 0 or not m[d + D_FAIR]:
            return found
        t = ahead


@borrowing_helper
def add_shares(m, charges, span, found, counts):  # type: ignore[no-untyped-def]
    """base.shares of a span, added to one thread's charges by kind (the last: nobody)."""
    kinds = m[H_KINDS]
    if found == 0:
        m[charges + kinds] += span
        return
    left = span
    lowest = -1
    for k in range(kinds):
        if m[counts + k]:
            if lowest < 0:
                lowest = k
            share = span * m[counts + k] // found
            m[charges + k] += share
            left -= share
    m[charges + lowest] += left


@borrowing_helper
def book_charges(m, lock, t):  # type: ignore[no-untyped-def]
    """A waiter's charges become blame."""
    kinds = m[H_KINDS]
    charges = m[H_SNAP] + t * (kinds + 1)
    out = m[H_BLAME] + lock * (kinds + 1) * kinds + m[HEADER + t * TF + T_KIND]
    for k in range(kinds + 1):
        m[out + k * kinds] += m[charges + k]


@borrowing_helper
def no_charges(m, t):  # type: ignore[no-untyped-def]
    kinds = m[H_KINDS]
    for k in range(kinds + 1):
        m[m[H_SNAP] + t * (kinds + 1) + k] = 0


@borrowing_helper
def range_advance(m, r, d):  # type: ignore[no-untyped-def]
    """Lock.advance with blockers of its own for every waiter."""
    span = m[H_NOW] - m[r + I_LAST]
    m[r + I_LAST] = m[H_NOW]
    if span == 0 or m[r + I_WAITING] == 0:
        return
    more = m[r + I_MORE]
    u = m[r + I_Q_HEAD]
    while u >= 0:
        o = more + u * EF
        if m[o + E_REACH] < m[o + E_LAST]:
            found = count_blockers(m, r, d, u)
            charges = m[H_SNAP] + u * (m[H_KINDS] + 1)
            add_shares(m, charges, span, found, m[H_BLOCKERS])
        u = m[o + E_NEXT]


@borrowing_helper
def node_line(m, r, e):  # type: ignore[no-untyped-def]
    """Range._node: the line of the covering node, found by hashing."""
    level = covering_level(m[e + E_FIRST], m[e + E_LAST])
    number = (r - m[H_INST]) // m[H_ISIZE]
    key = (((number << 3) | level) << 37) | (m[e + E_FIRST] >> (LEVEL_BITS * level))
    places = m[H_NODE_PLACES]
    width = m[H_LSIZE] + 8
    place = (key ^ (key >> 17) ^ (key >> 37)) & (places - 1)
    while True:
        slot = m[H_NODES] + place * width
        if m[slot] == key:
            return slot + 8
        if m[slot] == 0:
            m[slot] = key
            m[slot + 8 + L_OWNER] = -1
            m[slot + 8 + L_LAST_READER] = -1
            return slot + 8
        place = (place + 1) & (places - 1)


@borrowing_helper
def private_take(m, words, d, e, row):  # type: ignore[no-untyped-def]
    """What taking costs besides the one RMW of the lock or of its node."""
    atomic = m[H_ATOMIC]
    first, last = m[e + E_FIRST], m[e + E_LAST]
    if m[d + D_COST] == PER_HOLDER:
        return 0
    if m[d + D_COST] == PER_SLOT:
        return atomic * max(slots_of(first, last), words[(row << 4) + W_PAGES])
    level = covering_level(first, last)
    if m[d + D_ANCESTORS]:
        return atomic * max(0, LEVELS - level)
    return atomic * words[(row << 4) + W_TABLES] if level > 1 else 0


@borrowing_helper
def range_take(m, words, r, d, t, at_ns):  # type: ignore[no-untyped-def]
    """Range._take."""
    e = m[r + I_MORE] + t * EF
    at_ns += private_take(m, words, d, e, m[HEADER + t * TF + T_ROW])
    if m[d + D_COST] == PER_SLOT:
        return at_ns
    line = m[r + I_LINE] if m[d + D_COST] == PER_HOLDER else node_line(m, r, e)
    return line_rmw(m, line, m[e + E_CPU], at_ns)


@borrowing_helper
def range_enter(m, words, r, d, t, mode, operand):  # type: ignore[no-untyped-def]
    """Range._enter."""
    b = HEADER + t * TF
    more = m[r + I_MORE]
    e = more + t * EF
    set_span(m, words, d, e, m[b + T_ROW], operand)
    m[e + E_MODE] = mode
    m[e + E_CPU] = m[b + T_CPU]
    m[e + E_SEEN] = -1
    range_advance(m, r, d)
    tail = m[r + I_Q_TAIL]
    m[e + E_NEXT] = -1
    m[e + E_PREV] = tail
    if tail < 0:
        m[r + I_Q_HEAD] = t
    else:
        m[more + tail * EF + E_NEXT] = t
    m[r + I_Q_TAIL] = t


@borrowing_helper
def range_remove(m, r, t):  # type: ignore[no-untyped-def]
    more = m[r + I_MORE]
    e = more + t * EF
    before, after = m[e + E_PREV], m[e + E_NEXT]
    if before < 0:
        m[r + I_Q_HEAD] = after
    else:
        m[more + before * EF + E_NEXT] = after
    if after < 0:
        m[r + I_Q_TAIL] = before
    else:
        m[more + after * EF + E_PREV] = before


@borrowing_helper
def range_look(m, r, d, t, at_ns):  # type: ignore[no-untyped-def]
    """Range._look."""
    if m[d + D_COST] != PER_HOLDER:
        return at_ns
    more = m[r + I_MORE]
    e = more + t * EF
    cpu = m[e + E_CPU]
    u = m[r + I_Q_HEAD]
    while u >= 0:
        o = more + u * EF
        if m[o + E_FIRST] <= m[o + E_REACH] and m[o + E_FIRST] <= m[e + E_LAST]:
            if m[o + E_CPU] != cpu and m[o + E_SEEN] != cpu:
                at_ns += distance(m, m[o + E_CPU], cpu)
                m[o + E_SEEN] = cpu
        u = m[o + E_NEXT]
    return at_ns


@borrowing_helper
def passes_waiter(m, r, d, t):  # type: ignore[no-untyped-def]
    """Range._count_steal."""
    if m[d + D_FAIR]:
        return
    more = m[r + I_MORE]
    u = m[r + I_Q_HEAD]
    while u >= 0:
        o = more + u * EF
        if u != t and m[o + E_REACH] < m[o + E_LAST] and conflict(m, more + t * EF, o):
            stat(m, m[r + I_LOCK], S_STEALS, 1)
            return
        u = m[o + E_NEXT]


@borrowing_helper
def range_lock(m, words, r, d, t, mode, operand, tries, at_ns):  # type: ignore[no-untyped-def]
    """Range.lock and try_lock; ``r`` is -1 where one thread uses the lock.

    Returns when the range is held; -1: the thread waits; less, where it ``tries``: it
    does not get it, at the complement (``~``) of the time.
    """
    b = HEADER + t * TF
    if r < 0:
        e = m[H_SCRATCH]
        set_span(m, words, d, e, m[b + T_ROW], operand)
        at_ns += private_take(m, words, d, e, m[b + T_ROW])
        return at_ns if m[d + D_COST] == PER_SLOT else at_ns + m[H_ATOMIC]
    range_enter(m, words, r, d, t, mode, operand)
    e = m[r + I_MORE] + t * EF
    at_ns = range_look(m, r, d, t, at_ns)
    limit = range_limit(m, r, d, t)
    gets = limit == m[e + E_LAST]
    if gets:
        passes_waiter(m, r, d, t)
    elif tries:
        range_remove(m, r, t)
        if m[d + D_COST] > PER_SLOT:
            at_ns = line_read(m, node_line(m, r, e), m[e + E_CPU], at_ns)
        return ~at_ns
    m[e + E_REACH] = limit
    if gets or m[d + D_FAIR]:
        at_ns = range_take(m, words, r, d, t, at_ns)
    if gets:
        return at_ns
    m[r + I_WAITING] += 1
    no_charges(m, t)
    m[b + T_WAIT_FROM] = m[H_NOW]
    m[b + T_GRANTED] = m[H_NOW]
    m[b + T_WAIT_INST] = r
    m[b + T_MODE] = mode
    m[b + T_AWAKE] = at_ns
    if m[d + D_WAIT]:
        at(m, t, FALL, at_ns + m[H_FALL])
    else:
        at(m, t, OSQ, max(at_ns, m[b + T_SLICE_END]))
    return -1


@borrowing_helper
def range_grant(m, r, d, t, cpu, free_at_ns, at_ns):  # type: ignore[no-untyped-def]
    """Range._grant."""
    b = HEADER + t * TF
    e = m[r + I_MORE] + t * EF
    m[r + I_WAITING] -= 1
    book_charges(m, m[r + I_LOCK], t)
    m[b + T_GRANTED] = m[H_NOW]
    if m[d + D_WAIT]:
        return wake_up(m, t, GRANTED, at_ns)
    if m[b + T_CPU] < 0:
        m[b + T_AFTER] = GRANTED
        return at_ns
    m[e + E_CPU] = m[b + T_CPU]
    seen = max(free_at_ns, m[b + T_AWAKE])
    if m[d + D_COST] == PER_HOLDER:
        seen = line_rmw(m, m[r + I_LINE], m[b + T_CPU], seen)
    elif m[d + D_COST] == PER_SLOT:
        seen += distance(m, cpu, m[b + T_CPU])
    else:
        seen = line_rmw(m, node_line(m, r, e), m[b + T_CPU], seen)
    at(m, t, GRANTED, seen)
    return at_ns


@borrowing_helper
def range_unlock(m, r, d, t, at_ns):  # type: ignore[no-untyped-def]
    """Range.unlock."""
    if r < 0:
        return at_ns if m[d + D_COST] == PER_SLOT else at_ns + m[H_ATOMIC]
    more = m[r + I_MORE]
    e = more + t * EF
    cpu = m[HEADER + t * TF + T_CPU]
    range_advance(m, r, d)
    done = at_ns
    if m[d + D_COST] == PER_HOLDER:
        seen = m[e + E_SEEN]
        if seen >= 0 and seen != cpu:
            done += distance(m, seen, cpu)
        else:
            done += m[H_ATOMIC]
    elif m[d + D_COST] != PER_SLOT:
        done = line_rmw(m, node_line(m, r, e), cpu, done)
    range_remove(m, r, t)
    free_at = done
    u = m[r + I_Q_HEAD]
    while u >= 0:
        o = more + u * EF
        if m[o + E_REACH] < m[o + E_LAST] and conflict(m, o, e):
            m[o + E_REACH] = max(m[o + E_REACH], range_limit(m, r, d, u))
            if m[o + E_REACH] == m[o + E_LAST]:
                done = range_grant(m, r, d, u, cpu, free_at, done)
        u = m[o + E_NEXT]
    return done

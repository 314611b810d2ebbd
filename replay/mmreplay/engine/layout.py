"""Where the compiled loop keeps its state: one flat int64 array with a header.

One array is one argument: helpers stay cheap to call and quick to compile.  The
header (``H_*``) holds the bases of the regions and the scalars; ``T_*``, ``I_*``,
``L_*``, ``C_*``, ``D_*`` are offsets in the record of a thread, a shared lock
instance, a shared cache line, a CPU and a lock of the model.  A lock instance, a line
and a thread are named by the address of their record (``r``, ``line``, ``b``), a
private line by -1.
"""

from __future__ import annotations

from typing import Final

from mmreplay.engine.result import DELAY_BUCKETS

NEVER: Final = (1 << 63) - 1

# -- header ---------------------------------------------------------------------
(
    H_QUEUE, H_LEAF, H_NOW, H_STOP, H_QUEUED,
    H_SHIFT, H_SLICE, H_ATOMIC, H_RET, H_CORE, H_DIST_0, H_DIST_1, H_DIST_2, H_DIST_3, H_CORES,
    H_INST, H_ISIZE, H_LINE, H_LSIZE,
    H_LOCK, H_LOCKS, H_STAT, H_BLAME, H_SNAP, H_TWAIT, H_KINDS, H_IDLE_CORES, H_IDLE_NS,
    H_SLEEP_NS, H_DEP_WAIT_NS, H_WIN_BEGIN, H_WIN_END, H_WIN_OPS, H_WIN_USER, H_GRP_OPS,
    H_GRP_USER, H_GRP_RECORDED, H_GRP_TOTAL, H_WAKER, H_WOKEN, H_FALL, H_SWITCH, H_POLL,
    H_FLUSH_BASE, H_FLUSH_FIRST, H_FLUSH_NEXT, H_HANDLER, H_FLIGHT, H_CODE, H_OPS,
    H_TEND, H_THREADS, H_WRAP, H_RUNS, H_VALUES, H_EVERY, H_CONDS, H_REASONS, H_HELD,
    H_SNAPS, H_TAILS, H_LOOPS, H_SLEEPS, H_ITEMS, H_CONDITIONS, H_BITBASE, H_NOWHERE,
    H_TOUCH, H_MORE, H_PAGES, H_BLOCKERS, H_SCRATCH, H_NODES, H_NODE_PLACES, H_VISIBLE,
    H_TOUCH_KEYS, H_TOUCH_COUNT, H_TOUCHED, H_STILL, H_ENDS, H_OTHERS_LEFT,
    H_BASE_SLICE, H_MOST_LAG, H_WAKES_STAY, H_OWNED,
) = range(85)  # fmt: skip
HEADER: Final = 88

# -- thread; the records begin right behind the header -----------------------------
(
    T_STATE, T_PC, T_ROW, T_BUSY, T_SPIN, T_CPU, T_SLICE_END, T_DRAW,
    T_WAIT, T_WAS_ORDERED, T_TRIED, T_EACH, T_EACH_END, T_KIND, T_BEGIN, T_MM,
    T_FIN_ROW, T_FIN_KIND, T_FIN_END, T_FIN_BUSY, T_FIN_WAIT, T_FIN_DELAY, T_GROUP, T_THINK,
    T_STREAM, T_NTH, T_END_ROW, T_TAIL, T_AFTER, T_LAST_CPU, T_FIRST_LAP, T_DEP_FROM,
    T_DEP_NEXT, T_RQ_NEXT, T_WAIT_INST, T_MODE, T_WAIT_FROM, T_GRANTED, T_AWAKE, T_PENDING,
    T_SAW, T_SPIN_UNTIL, T_ENTRY, T_Q_NEXT, T_OSQ_NEXT, T_QUEUED, T_OWNED, T_LAP,
    T_NO_IDLE,  # its blocked think time is left out
) = range(49)  # fmt: skip
# the scheduler's: virtual time, as of when, until when it is its turn, lag when it left, last ran
T_V, T_V_FROM, T_DEADLINE, T_LAG, T_RAN = range(T_NO_IDLE + 1, T_NO_IDLE + 6)
TF: Final = 64

# -- shared lock instance -----------------------------------------------------------
(
    I_LOCK, I_WRITER, I_READERS, I_Q_HEAD, I_WAITING, I_LAST, I_ROWNED, I_LINE, I_WKIND,
    I_HANDOFF, I_NONSPIN, I_Q_TAIL, I_OSQ_HEAD, I_OSQ_TAIL, I_DRAINER, I_BY_KIND,
) = range(16)  # fmt: skip
I_CLOSED: Final = I_HANDOFF  # pin: since when its drainer keeps new readers out
I_MORE: Final = I_DRAINER  # range lock, rwsem with BRAVO readers: where the rest of it lies

# -- what I_MORE points at: a thread's entry of a range lock, or the bias of an rwsem -------------
E_FIRST, E_LAST, E_MODE, E_REACH, E_CPU, E_SEEN, E_NEXT, E_PREV = range(8)
EF: Final = 8
(
    B_BIASED, B_INHIBIT_UNTIL, B_PUBLISHED, B_REVOKER, B_BEGAN, B_CHARGED, B_BY_KIND,
) = range(7)  # fmt: skip

# -- shared cache line -----------------------------------------------------------------
L_OWNER, L_LAST_READER, L_FREE, L_READERS = range(4)

# -- CPU ---------------------------------------------------------------------------------
(
    C_RUNNING, C_MM, C_OWED, C_IDLE_SINCE, C_CORE, C_LLC, C_SOCKET, C_ACKS_FROM, C_ACKS_UNTIL,
    C_DUE, C_QUEUE, C_QUEUED, C_QUEUE_V, C_LAST_V, C_RESCHED,
) = range(15)  # fmt: skip
CF: Final = 16

# -- lock of the model -----------------------------------------------------------------------
(
    D_KIND, D_COLUMN, D_SHARED, D_INST, D_LINE, D_VALUE, D_MARKS_BY, D_BUMPS, D_BUMP_ACQUIRE,
    D_OWNER, D_STEAL, D_READER_SPIN, D_OSQ, D_SPIN_US, D_HANDOFF_NS, D_BATCH, D_FORM, D_FIFO,
    D_BRAVO, D_INHIBIT, D_ROUND, D_WAIT, D_COST, D_ANCESTORS, D_FAIR, D_LEFTWARDS,
) = range(26)  # fmt: skip
DF: Final = 28

# -- counters per kind of operation: how many, times, and how many of each delay ------------------
K_COUNT, K_BUSY, K_WAIT = range(3)
K_DELAY: Final = 8
KF: Final = K_DELAY + DELAY_BUCKETS

# -- columns of the counters per lock (as summary.LOCK_FIELDS) -----------------------------------
(
    S_READ, S_WRITE, S_DOWNGRADE, S_READ_WAIT, S_WRITE_WAIT, S_READ_HOLD, S_WRITE_HOLD, S_MARK,
    S_TRY_FAILED, S_SLEEPS, S_STEALS, S_HANDOFFS,
) = range(12)  # fmt: skip
SF: Final = 12

# -- packed operation: 8 int64, also seen as 16 int32 (columns W_*) -------------------------------
# O_PROGRAM: first instruction | flags << 32 | kind << 40
O_PROGRAM, O_THINK, O_BLOCKED, O_PAGES = range(4)
(
    W_PAGES, W_SCALE, W_VMA, W_TABLE, W_MM, W_ANON, W_VMAS, W_TABLES, W_FILE, W_CHILD,
) = range(6, 16)  # fmt: skip
#: A column that no operation has: the one object of scope global.
W_GLOBAL: Final = -1
F_DEPS: Final = 1
F_SEEN: Final = 2  # others see its end: it has dependents, or touches
F_NO_PROGRAM: Final = 4
F_TOUCHES: Final = 8
F_DEPENDENTS: Final = 16
F_POINT: Final = 32  # no operation: plan.WAKE_POINT
#: Page columns of an operation, behind all packed operations (only where the model uses them).
G_FIRST, G_LAST, G_VMA_FIRST, G_VMA_LAST = range(4)

# -- states, as states.State (an enum is no constant for the compiler) ----------------------------
OFF, RUN, FALL, GRANTED, RETRY, SPIN, OSQ, HANDOFF_SPIN, WAKE, DRAINED, END = range(11)
POINT: Final = 11  # RUN, at an ordered step
REVOKE: Final = 12
PC_THINK, PC_BEGIN, PC_BLOCK, PC_END = -1, -2, -3, -4

# -- specialised code, rows of XF int64: see specialise.py -----------------------------------------
(
    X_OP, X_A, X_B, X_C, X_TARGET, X_STEP, X_COLUMN, X_INST, X_LINE, X_OWNER, X_HELD, X_STAT,
    X_SEQ, X_SEQ_LINE, X_SEQ_COLUMN, X_SEQ_BY,
) = range(16)  # fmt: skip
XF: Final = 16
#: Instructions of the specialised code; the model's own follow from ``X_MODEL`` on.
(
    X_RUN, X_IF_BIT, X_EVERY, X_JUMP, X_DONE, X_LOCK_PRIVATE, X_UNLOCK_PRIVATE,
    X_RWSEM_LOCK, X_RWSEM_TRY, X_RWSEM_UNLOCK, X_PIN_TRY, X_PIN_UNLOCK, X_SPIN_LOCK, X_SPIN_UNLOCK,
    X_SHARE,
) = range(15)  # fmt: skip
X_MODEL: Final = 16
#: LOCK, TRY, UNLOCK of what only designs have, and FLUSH of what was touched.
X_DESIGN: Final = 40
X_DESIGN_TRY, X_DESIGN_UNLOCK, X_FLUSH_TOUCHED = range(41, 44)
#: X_STEP: does the step touch what another thread can see?  The loop finds X_OP there if not.
PRIVATE_STEP, ORDERED_STEP, DYNAMIC_STEP = range(64, 67)  # dynamic: depends on the VMA of EACH

# -- items of X_RUN, rows of N_F int64 ------------------------------------------------------
N_COST, N_KEY, N_DRAWS, N_COUNT, N_HOLD = range(5)
NF: Final = 8

# What an operation has of each scope, two bits each from CLASS_SHIFT on, in the class key.
NONE, PRIVATE, SHARED_OBJECT = range(3)
CLASS_OP_SHIFT: Final = 45
CLASS_SHIFT: Final = 51
(CLASS_MM, CLASS_VMA, CLASS_TABLE, CLASS_FILE, CLASS_ANON, CLASS_CHILD) = range(6)

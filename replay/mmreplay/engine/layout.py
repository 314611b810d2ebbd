"""Where the compiled loop keeps its state: one flat int64 array with a header.

One array is one argument: helpers stay cheap to call and quick to compile.  The
header (``H_*``) holds the bases of the regions and the scalars; ``T_*``, ``I_*``,
``L_*``, ``C_*``, ``D_*`` are offsets in the record of a thread, a shared lock
instance, a shared cache line, a CPU and a lock of the model.
"""

from __future__ import annotations

from typing import Final

NEVER: Final = (1 << 63) - 1

# -- header ---------------------------------------------------------------------
(
    H_TH, H_INST, H_LINE, H_CORE, H_DIST, H_TREE, H_LOCK, H_STAT, H_BLAME, H_SNAP, H_TWAIT,
    H_SHIFT, H_LEAVES, H_KINDS, H_CORES, H_ISIZE, H_LSIZE, H_LOCKS, H_NOW, H_RQ_HEAD, H_RQ_TAIL,
    H_IDLE_CORES, H_IDLE_NS, H_SLEEP_NS, H_DEP_WAIT_NS, H_STOP, H_WIN_BEGIN, H_WIN_END, H_WIN_OPS,
    H_WIN_USER, H_GRP_OPS, H_GRP_USER, H_GRP_RECORDED, H_GRP_TOTAL, H_ATOMIC, H_WAKER, H_WOKEN,
    H_FALL, H_SWITCH, H_SLICE, H_POLL, H_FLUSH_BASE, H_FLUSH_FIRST, H_FLUSH_NEXT, H_HANDLER,
    H_OPCOUNT, H_OPBUSY, H_OPWAIT, H_DELAY, H_TEND, H_THREADS, H_RET, H_WRAP, H_SATURATED, H_SEED,
) = range(55)  # fmt: skip
HEADER: Final = 64

# -- thread ---------------------------------------------------------------------
(
    T_STATE, T_AFTER, T_CPU, T_LAST_CPU, T_SLICE_END, T_SPIN, T_ROW, T_PC,
    T_BUSY, T_WAIT, T_DRAW, T_KIND, T_BEGIN, T_WAS_ORDERED, T_TRIED, T_THINK,
    T_FIN_ROW, T_FIN_KIND, T_FIN_END, T_FIN_BUSY, T_FIN_WAIT, T_FIN_DELAY, T_NTH, T_END_ROW,
    T_FIRST_LAP, T_TAIL, T_EACH, T_EACH_END, T_DEP_FROM, T_GROUP, T_DEP_NEXT, T_RQ_NEXT,
    T_WAIT_INST, T_MODE, T_WAIT_FROM, T_GRANTED, T_AWAKE, T_PENDING, T_SAW, T_SPIN_UNTIL,
    T_ENTRY, T_Q_NEXT, T_OSQ_NEXT, T_OWNED, T_QUEUED, T_MM, T_OWNED_0,
) = range(47)  # fmt: skip
MAX_OWNED: Final = 16
TF: Final = 64

# -- shared lock instance -----------------------------------------------------------
(
    I_LOCK, I_WRITER, I_WKIND, I_READERS, I_LAST, I_WAITING, I_HANDOFF, I_NONSPIN, I_ROWNED,
    I_Q_HEAD, I_Q_TAIL, I_OSQ_HEAD, I_OSQ_TAIL, I_DRAINER, I_LINE, I_BY_KIND,
) = range(16)  # fmt: skip

# -- shared cache line -----------------------------------------------------------------
L_OWNER, L_LAST_READER, L_FREE, L_READERS = range(4)

# -- CPU ---------------------------------------------------------------------------------
C_RUNNING, C_MM, C_OWED, C_IDLE_SINCE = range(4)
CF: Final = 4

# -- lock of the model -----------------------------------------------------------------------
(
    D_KIND, D_SCOPE, D_SID, D_INST, D_LINE_SCOPE, D_LINE_SID, D_LINE, D_VALUE, D_MARKS_BY,
    D_BUMPS, D_BUMP_ACQUIRE, D_STEAL, D_READER_SPIN, D_OSQ, D_SPIN_US, D_HANDOFF_NS, D_BATCH,
    D_FORM, D_OWNER,
) = range(19)  # fmt: skip
DF: Final = 20

# -- columns of the counters per lock (as summary.LOCK_FIELDS) -----------------------------------
(
    S_READ, S_WRITE, S_DOWNGRADE, S_READ_WAIT, S_WRITE_WAIT, S_READ_HOLD, S_WRITE_HOLD, S_MARK,
    S_TRY_FAILED, S_SLEEPS, S_STEALS, S_HANDOFFS,
) = range(12)  # fmt: skip
SF: Final = 12

# -- packed operation, int64[N, 8]; "a | b": a in the low, b in the high 32 bits -----------------
O_PROGRAM, O_THINK, O_BLOCKED, O_PAGES, O_VMA, O_MM, O_VMAS, O_FILE = range(8)
# O_PROGRAM: first instruction | flags << 32 | kind << 40; O_PAGES: pages | scale; O_VMA: vma |
# table; O_MM: mm | anon slot; O_VMAS: vmas | tables; O_FILE: file | child mm
F_DEPS: Final = 1
F_DEPENDENTS: Final = 2
F_NO_PROGRAM: Final = 4

# -- states, as states.State (an enum is no constant for the compiler) ----------------------------
OFF, RUN, FALL, GRANTED, RETRY, SPIN, OSQ, HANDOFF_SPIN, WAKE, DRAINED, END = range(11)
PC_THINK, PC_BEGIN, PC_BLOCK, PC_END = -1, -2, -3, -4

# -- specialised code: its last column, and instructions that the model's code does not have -------
FL_ORDERED: Final = 1  # touches what another thread can see
FL_DYNAMIC: Final = 2  # whether it does depends on the VMA that EACH is at
LOCK_PRIVATE: Final = 18  # LOCK or TRY of what one thread uses: A, B as LOCK, C slot of held
UNLOCK_PRIVATE: Final = 19
# What an operation has of each scope, two bits each from CLASS_SHIFT on, in the class key.
NONE, PRIVATE, SHARED_OBJECT = range(3)
CLASS_OP_SHIFT: Final = 42
CLASS_SHIFT: Final = 48
(CLASS_MM, CLASS_VMA, CLASS_TABLE, CLASS_FILE, CLASS_ANON, CLASS_CHILD) = range(6)

"""Lock counts of real kernels against the locking models.

``read_counts(path)`` reads a file of counts, ``check_counts(...)`` replays its phases and
compares, ``check_kernel(...)`` does one kernel.
"""

from mmreplay.lockcounts.check import Report, Row, check_counts, check_kernel
from mmreplay.lockcounts.file import COLUMNS, Counted, read_counts

__all__ = [
    "COLUMNS",
    "Counted",
    "Report",
    "Row",
    "check_counts",
    "check_kernel",
    "read_counts",
]

"""Records a program on this machine: perf with the right events, else strace.

What can be recorded here (:mod:`here`) and what it will cost (:mod:`estimate`) are found out first,
then the recorder runs (:mod:`run`), and what it wrote is checked for losses (:mod:`check`).
"""

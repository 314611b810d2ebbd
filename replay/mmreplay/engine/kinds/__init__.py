"""Native lock kinds, one module each: the oracle's class and, in ``*_jit``, its compiled twin."""

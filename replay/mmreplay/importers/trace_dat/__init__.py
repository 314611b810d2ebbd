"""trace.dat, what trace-cmd record writes, to the same events."""

"""Text of perf script, ftrace and strace, to the same events."""

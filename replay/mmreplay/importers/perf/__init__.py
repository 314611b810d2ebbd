"""perf.data: containers, record streams in total order, and their events."""

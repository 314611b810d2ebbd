"""Events to operations: what begins and ends, on which thread, in which address space."""

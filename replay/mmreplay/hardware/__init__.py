"""Runs memory-map operations on this machine, and counts the locks that the kernel takes."""

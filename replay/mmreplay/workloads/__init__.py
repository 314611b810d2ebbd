"""Workload definitions and the traces that they generate."""

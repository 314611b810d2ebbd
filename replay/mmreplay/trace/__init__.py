"""See the architecture chapter of the docs."""

"""See the architecture chapter of the docs."""

import gc

# Before anything is loaded: what modules are made of stays, and looking through it for cycles
# again and again took a third of a second of each command that loads numba, 3 ms of others.
gc.set_threshold(100_000, 20, 20)

"""Four Python threads that map, fault and unmap, and wait for the interpreter's lock.

mmreplay record -- python3 benchmarks/programs/interpreter_lock.py 150
mmreplay record --dependencies -- python3 benchmarks/programs/interpreter_lock.py 150
"""

import mmap
import sys
import threading

PAGES = 64


def work(rounds: int) -> None:
    """Each round: a mapping, a fault for each of its pages, and it is gone."""
    for _ in range(rounds):
        memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE)
        for page in range(PAGES):
            memory[page * mmap.PAGESIZE] = 1
        memory.close()


threads = [threading.Thread(target=work, args=(int(sys.argv[1]),)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()

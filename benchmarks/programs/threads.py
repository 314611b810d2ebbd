"""Two threads that compress new memory and make lists: a program to be recorded."""

import threading
import zlib


def work() -> None:
    for _ in range(60):
        data = bytes(2 << 20)  # calloc: a new mapping each
        zlib.compress(data, 1)
        rows = [[j, str(j)] for j in range(30000)]
        del rows


threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()

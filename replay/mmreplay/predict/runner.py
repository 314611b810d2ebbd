"""Runs many simulations on a few threads: compiled code holds no interpreter lock."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from mmreplay.engine.result import Result
from mmreplay.predict.rooms import Job

Progress = Callable[[int, int], None]
Key = TypeVar("Key", bound=Hashable)


def run_all(
    jobs: Mapping[Key, Job], progress: Progress | None = None, workers: int | None = None
) -> dict[Key, Result]:
    """Run every job; the result does not depend on order or on the number of workers.

    The first exception cancels what has not begun and is raised.
    """
    workers = workers or min(len(os.sched_getaffinity(0)), 8)
    done: dict[Key, Result] = {}
    total = len(jobs)

    def run(key: Key, job: Job) -> None:
        done[key] = job()
        if progress is not None:
            progress(len(done), total)

    if workers == 1 or total == 1:
        for key, job in jobs.items():
            run(key, job)
        return {key: done[key] for key in jobs}
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="replay") as pool:
        futures = [pool.submit(run, key, job) for key, job in jobs.items()]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {key: done[key] for key in jobs}


def stderr_progress(label: str) -> Progress | None:
    """One line on stderr that is overwritten; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\r" + " " * (len(label) + 24) + "\r" if done == total else ""
        sys.stderr.write(f"\r{label} {done}/{total}{end}")
        sys.stderr.flush()

    return show

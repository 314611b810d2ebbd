"""Small workloads, and the traces that are generated from them."""

from __future__ import annotations

from typing import Any

import polars as pl

from mmreplay.schema import OpKind
from mmreplay.workloads.api import synthesise
from mmreplay.workloads.definition import Workload, parse_workload
from mmreplay.workloads.generator import Synthetic

HEAD = """
schema = 1
title = "T"
stands_for = "S"
source = "O"
counts = "C"
"""


def workload(
    loop: str, *, regions: str = "", top: str = "", once: str = "", more: str = ""
) -> Workload:
    regions = regions or '[regions.memory]\nsize = "8 pages"\n'
    role = f'[roles.worker]\nthreads = "rest"\nonce = [ {once} ]\nloop = [ {loop} ]\n'
    return parse_workload(HEAD + top + regions + role + more, "w.toml", "w")


def made(what: Workload | str, threads: int = 1, **options: Any) -> Synthetic:
    return synthesise(what, threads=threads, **{"ops": 400, "duration_s": 0.05, **options})


def rows(found: Synthetic, role: str = "worker") -> list[dict[str, Any]]:
    """Operations of one role, kinds by name."""
    who = found.trace.threads.filter(pl.col("group") == role).select("tid").collect()["tid"]
    table = found.trace.operations.filter(pl.col("tid").is_in(who.implode())).collect().to_dicts()
    for row in table:
        row["kind"] = OpKind(row["kind"]).name
    return table

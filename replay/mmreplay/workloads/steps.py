"""The steps that a workload's text is made of, as pydantic checks them.

A step is one table with the key ``do``.  What each becomes in a compiled program is in
:mod:`mmreplay.workloads.compiler`; ``docs/workloads.md`` lists them for people.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mmreplay.schema import PAGE_SIZE

_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = re.compile(r"^(\d+) ?(B|KiB|MiB|GiB|TiB|pages?)$")
#: Largest size of one region: half of the 47-bit user half of an address space.
MOST_BYTES: Final = 1 << 46

#: madvise advice by name (include/uapi/asm-generic/mman-common.h@6.18).
ADVICE: Final = {
    "normal": 0,
    "random": 1,
    "sequential": 2,
    "willneed": 3,
    "dontneed": 4,
    "free": 8,
    "remove": 9,
    "dontfork": 10,
    "dofork": 11,
    "mergeable": 12,
    "unmergeable": 13,
    "hugepage": 14,
    "nohugepage": 15,
    "dontdump": 16,
    "dodump": 17,
    "cold": 20,
    "pageout": 21,
    "populate_read": 22,
    "populate_write": 23,
    "collapse": 25,
}


def size_bytes(value: Any) -> Any:
    """Bytes of ``"128 MiB"``, ``"4 KiB"``, ``"3 pages"``; whole pages, at least one."""
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is no size; write it with its unit, as "64 KiB" or "4 pages"')
    match = _SIZE.match(value.strip())
    if match is None:
        raise ValueError(f'"{value}" is no size; write it as "64 KiB", "128 MiB" or "4 pages"')
    unit = match.group(2)
    found = int(match.group(1)) * (PAGE_SIZE if unit.startswith("page") else _UNITS[unit])
    if found % PAGE_SIZE:
        raise ValueError(f'"{value}" is not a whole number of {PAGE_SIZE}-byte pages')
    if not 0 < found <= MOST_BYTES:
        raise ValueError(f'"{value}" is not between a page and {MOST_BYTES >> 40} TiB')
    return found


def _span(value: Any) -> Any:
    low, high = value if isinstance(value, list) and len(value) == 2 else (value, value)
    pair = size_bytes(low), size_bytes(high)
    if pair[0] > pair[1]:
        raise ValueError(f"from {low} to {high} goes down")
    return pair


def _protection(value: Any) -> Any:
    words = {"none": 0, "r": 1, "w": 2, "rw": 3, "rx": 5, "rwx": 7}
    if value not in words:
        raise ValueError(f"{value!r} is none of {', '.join(words)}")
    return words[value]


def _advice(value: Any) -> Any:
    from mmreplay.errors import closest

    if value not in ADVICE:
        raise ValueError(f"unknown advice {value!r}{closest(str(value), ADVICE)}")
    return ADVICE[value]


Size = Annotated[int, BeforeValidator(size_bytes)]
#: A size, or ``[least, most]``: drawn uniformly in whole pages each time.
Span = Annotated[tuple[int, int], BeforeValidator(_span)]
Protection = Annotated[int, BeforeValidator(_protection)]
Advice = Annotated[int, BeforeValidator(_advice)]
Access = Literal["read", "write"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=40)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Control(Strict):
    """A step that does nothing to memory itself."""


class _Step(Strict):
    #: Operations that ``ops_per_s`` counts, each time the step is done (touching and what
    #: is done ``by`` units: for each unit).
    counts: int = Field(default=0, ge=0, le=1_000_000)


class _OnRange(_Step):
    """A step on a region, or on a part of it.

    ``first``: where it begins.  ``size``: how much; by default up to the end of what is
    mapped.  ``part = "own"``: the region is divided among the threads of the role.
    ``at``: only the ``window`` (a page, if not given) whose number the counter of that name
    says, wrapping around; ``at = "next"``: where the thread's last step on a range of this
    region ended, ``at = "same"``: where it began, ``at = "last"``: the one that ends there.
    ``by``: not at once but unit by unit.  ``order``: of the units.
    ``units``: this many of them.
    """

    on: Name
    first: Size | None = None
    size: Span | None = None
    part: Literal["whole", "own"] = "whole"
    by: Size | None = None
    at: Name | None = None
    window: Size | None = None
    order: Literal["ascending", "scattered"] = "ascending"
    units: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.part == "own" and (self.first is not None or self.size is not None):
            raise ValueError('part = "own" says where already; leave first and size out')
        if self.window is not None and self.at is None:
            raise ValueError("window goes with at")
        return self


class Mmap(_Step):
    """Map the region where it is not mapped; with ``over``, MAP_FIXED over a part of it."""

    do: Literal["mmap"]
    on: Name
    size: Span | None = None
    first: Size | None = None
    over: bool = False
    prot: Protection | None = None
    populate: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Mmap:
        if self.first is not None and not self.over:
            raise ValueError("first goes with over = true")
        return self


class Touch(_OnRange):
    """Access one byte of each page from user mode."""

    do: Literal["touch"]
    access: Access = "write"
    if_allowed: bool = False
    fresh: bool = False


class ReadInto(_OnRange):
    """read(2) one byte of /dev/zero into each page: a fault in kernel mode where untouched."""

    do: Literal["read_into"]
    if_allowed: bool = False
    fresh: bool = False


class Munmap(_OnRange):
    do: Literal["munmap"]


class Mprotect(_OnRange):
    do: Literal["mprotect"]
    prot: Protection


class Madvise(_OnRange):
    do: Literal["madvise"]
    advice: Advice


class Populate(_OnRange):
    """MADV_POPULATE_WRITE or MADV_POPULATE_READ."""

    do: Literal["populate"]
    access: Access = "write"


class Mremap(_Step):
    """Grow or shrink the region to ``size``; it may move unless ``may_move = false``."""

    do: Literal["mremap"]
    on: Name
    size: Span
    may_move: bool = True


class Brk(_Step):
    """Set the break to ``size`` above where it was at the start; ``size = 0``: back to it."""

    do: Literal["brk"]
    on: Name
    size: Annotated[int, BeforeValidator(lambda v: 0 if v == 0 else size_bytes(v))]


class Think(_Step):
    """Compute, or sleep, for a time of the given distribution.

    ``woken_by``: a role one of whose threads ends the sleep: a replay waits for what that
    thread had done by then, however long it takes.
    """

    do: Literal["think"]
    mean_ns: int = Field(ge=1, le=10**12)
    distribution: Literal["constant", "exponential", "lognormal"] = "constant"
    sigma: float | None = Field(default=None, gt=0, le=5)
    asleep: bool = False
    woken_by: Name | None = None

    @model_validator(mode="after")
    def _shape(self) -> Think:
        if self.woken_by is not None and not self.asleep:
            raise ValueError("woken_by goes with asleep = true")
        if (self.sigma is not None) != (self.distribution == "lognormal"):
            raise ValueError('sigma goes with distribution = "lognormal"')
        return self


class Pick(_Control):
    """Choose which element of a region with ``count`` is meant from here on.

    ``mapped``: the present one if it is mapped, else the next that is; ``free``: the next
    after it that is not; ``untouched``: as ``mapped``, of those that nothing was done in since
    they were mapped; ``other``: the next mapped one after it.  Where there is none the choice
    stays.
    """

    do: Literal["pick"]
    on: Name
    how: Literal["random", "next", "mapped", "free", "untouched", "other"] = "random"


class Spawn(_Step):
    """Start a thread that does the role's steps once; waits for its predecessor's end first."""

    do: Literal["spawn"]
    role: Name


class Fork(_Step):
    """Fork a process that does the role's steps once; waits for its predecessor's end first."""

    do: Literal["fork"]
    role: Name


class Join(_Control):
    """Wait until the thread or process that this thread started as ``role`` has ended."""

    do: Literal["join"]
    role: Name


class Barrier(_Control):
    """Wait until all threads of all roles that have this barrier are here."""

    do: Literal["barrier"]
    name: Name


class Repeat(_Control):
    do: Literal["repeat"]
    times: int = Field(ge=1, le=1 << 40)
    counter: Name | None = None
    steps: list[Step] = Field(min_length=1)


class Branch(Strict):
    weight: float = Field(gt=0, le=1e12)
    steps: list[Step]


class Choose(_Control):
    """One of several branches at random, by weight."""

    do: Literal["choose"]
    of: list[Branch] = Field(min_length=1)


class IfMapped(_Control):
    """``steps`` where the region (the picked element) is mapped, else ``otherwise``."""

    do: Literal["if_mapped"]
    on: Name
    steps: list[Step] = Field(default_factory=list)
    otherwise: list[Step] = Field(default_factory=list)


Step = Annotated[
    Mmap
    | Touch
    | ReadInto
    | Munmap
    | Mprotect
    | Madvise
    | Populate
    | Mremap
    | Brk
    | Think
    | Pick
    | Spawn
    | Fork
    | Join
    | Barrier
    | Repeat
    | Choose
    | IfMapped,
    Field(discriminator="do"),
]
Repeat.model_rebuild()
Branch.model_rebuild()
Choose.model_rebuild()
IfMapped.model_rebuild()
#: Step models by the word that ``do`` has.
STEPS: Final[dict[str, type[Strict]]] = {
    model.model_fields["do"].annotation.__args__[0]: model  # type: ignore[union-attr]
    for model in (
        *(Mmap, Touch, ReadInto, Munmap, Mprotect, Madvise, Populate, Mremap, Brk, Think),
        *(Pick, Spawn, Fork, Join, Barrier, Repeat, Choose, IfMapped),
    )
}

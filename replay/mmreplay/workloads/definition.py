"""Workload definitions: one text that is generated as a trace and run on a machine.

``models/workloads/NAME.toml`` (or a file of the user's): regions of memory, files, roles
with their thread counts, and the steps that each role does.  :func:`load_workload` reads
and checks it; every mistake is one line with file, key and the closest known word.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError

from mmreplay.errors import UserError, closest
from mmreplay.resources import models_dir
from mmreplay.workloads import steps as steps_
from mmreplay.workloads.steps import STEPS, Name, Protection, Size, Step, Strict

SCHEMA: Final = 1
#: The state of a chain that is its end.
END: Final = "end"
_HELP: Final = "see docs/workloads.md"


class File(Strict):
    """A file to map, filled before the threads start.

    ``on``: ``tmpfs`` (a memfd) or ``disk``.  ``per``: one for each thread, or one for all.
    """

    size: Size
    on: Literal["tmpfs", "disk"] = "tmpfs"
    per: Literal["thread", "process"] = "process"


class Region(Strict):
    """A piece of address space that steps name.

    ``size``: the most it ever has, and what ``mmap`` maps by default.
    ``per``: each thread has its own (which it shares with threads that it spawns), or all
    threads share one.  ``count``: so many of them, one of which ``pick`` chooses.
    ``kind``: ``memory`` (anonymous or ``file``), or ``heap`` (moved by ``brk``).
    """

    size: Size
    per: Literal["thread", "process"] = "thread"
    count: int = Field(default=1, ge=1, le=1 << 20)
    kind: Literal["memory", "heap"] = "memory"
    file: Name | None = None
    shared: bool = False
    prot: Protection = 3
    reserve: bool = True


class ChainState(Strict):
    """A state of a Markov chain: its steps, then one of the ``next`` by weight.

    A role that others start has an end, which is the state ``end``.  ``phase``: the one of the
    role's phases that the state belongs to.
    """

    phase: Name | None = None
    steps: list[Step] = Field(default_factory=list)
    next: dict[Name, Annotated[float, Field(gt=0, le=1e12)]] = Field(min_length=1)


class Role(Strict):
    """What some of the threads do: ``once`` first, then ``loop`` for ever.

    In place of the loop there may be a ``chain`` of states, which begins with the first.

    ``threads``: a number, ``"rest"``, or a share such as 0.25 of all threads (at least one).
    Left out where other threads ``spawn`` or ``fork`` the role; it then has no loop, and
    its chain comes to an end.

    ``phases``: how many states of its chain a thread goes through in each phase, in order;
    each phase begins with its first state.  After the last one a generated thread ends, and
    one that runs on a machine begins anew.

    ``even``: branches and following states are taken as often as their weights say, within one
    time, in random order; else each time at random.
    """

    threads: Annotated[
        int | float | Literal["rest"] | None, BeforeValidator(lambda v: _threads(v))
    ] = None
    once: list[Step] = Field(default_factory=list)
    loop: list[Step] = Field(default_factory=list)
    chain: dict[Name, ChainState] = Field(default_factory=dict)
    even: bool = False
    phases: dict[Name, Annotated[int, Field(ge=1, le=1 << 40)]] = Field(default_factory=dict)

    def steps(self) -> Iterator[Step]:
        """All its steps, those inside others too."""
        yield from walk(self.once)
        yield from walk(self.loop)
        for state in self.chain.values():
            yield from walk(state.steps)


def _threads(value: Any) -> Any:
    if value == "rest" or value is None:
        return value
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if whole or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError(f'{value!r} is neither a number of threads, nor a share below 1, nor "rest"')


class Workload(Strict):
    """One definition; ``name`` and ``path`` are those of its file."""

    schema_: Literal[1] = Field(alias="schema")
    title: str = Field(min_length=1)
    stands_for: str = Field(min_length=1)
    source: str = Field(min_length=1)
    counts: str = Field(min_length=1)
    files: dict[Name, File] = Field(default_factory=dict)
    regions: dict[Name, Region] = Field(min_length=1)
    setup: list[Step] = Field(default_factory=list)
    roles: dict[Name, Role] = Field(min_length=1)
    name: str = ""
    path: str = ""

    def started(self) -> dict[str, Role]:
        """Roles whose threads are there from the start."""
        return {name: role for name, role in self.roles.items() if role.threads is not None}


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """All steps, those inside others too."""
    for step in steps:
        yield step
        if isinstance(step, steps_.Repeat):
            yield from walk(step.steps)
        elif isinstance(step, steps_.Choose):
            for branch in step.of:
                yield from walk(branch.steps)
        elif isinstance(step, steps_.IfMapped):
            yield from walk(step.steps)
            yield from walk(step.otherwise)


def list_workloads() -> list[str]:
    """Names of the shipped definitions, sorted."""
    return sorted(path.stem for path in models_dir("workloads").glob("*.toml"))


def list_probes() -> list[str]:
    """Names of the definitions that exist to be calibrated with, sorted: one operation each."""
    return sorted(path.stem for path in models_dir("workloads").glob("probes/*.toml"))


def load_workload(name_or_path: str | Path) -> Workload:
    """A shipped definition or probe by name, or any by the path of its ``.toml`` file.

    Raises
    ------
    UserError
        Unknown name, unreadable file, or a mistake in it (file, key, closest match).
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text:
        return read_workload(Path(text))
    if text in list_probes():
        return read_workload(models_dir("workloads") / "probes" / f"{text}.toml")
    names = list_workloads()
    if text not in names:
        raise UserError(
            f'unknown workload "{text}"{closest(text, names)}',
            fix="see mmreplay workloads list, or give the path of a .toml file",
        )
    return read_workload(models_dir("workloads") / f"{text}.toml")


def read_workload(path: Path) -> Workload:
    """The definition in ``path``."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            fix="see mmreplay workloads list",
        ) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", where=str(path), fix=_HELP) from None
    return parse_workload(text, str(path), path.stem)


def parse_workload(text: str, where: str, name: str) -> Workload:
    """The definition in ``text``; ``where`` names it in errors."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not valid TOML: {error}", where=where, fix="mend the syntax") from None
    for key in ("name", "path"):
        if key in document:
            raise UserError(
                f'unknown key "{key}"', where=where, fix="the name is that of the file; remove it"
            )
    try:
        found = Workload.model_validate({**document, "name": name, "path": where})
    except ValidationError as error:
        raise _refuse(where, error) from None
    except RecursionError:
        raise UserError("steps are nested too deeply", where=where, fix=_HELP) from None
    _check(found)
    return found


# -- errors --------------------------------------------------------------------------------------


def _refuse(where: str, error: ValidationError) -> UserError:
    # a misspelt key is also a missing one; say what is there, not what is not
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    # pydantic puts the word of a discriminated union into the place of the error
    place = [
        p
        for i, p in enumerate(first["loc"])
        if not (i and isinstance(first["loc"][i - 1], int) and p in STEPS)
    ]
    key = ".".join(str(part) for part in place)
    kind = first["type"]
    if kind == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        return UserError(
            f'unknown key "{key}"{closest(str(place[-1]), known)}',
            where=where,
            fix=f"known here: {', '.join(known)}",
        )
    if kind == "missing":
        return UserError(f'key "{key}" is missing', where=where, fix=_HELP)
    if kind == "union_tag_invalid":
        word = str(first.get("ctx", {}).get("tag", ""))
        return UserError(
            f'{key}: unknown step do = "{word}"{closest(word, STEPS)}', where=where, fix=_HELP
        )
    if kind == "union_tag_not_found":
        return UserError(f'{key}: a step needs the key "do"', where=where, fix=_HELP)
    return UserError(f"{key}: {first['msg'].removeprefix('Value error, ')}", where=where, fix=_HELP)


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    model: Any = Workload
    for part in reversed(place):
        if part in STEPS:
            model = STEPS[str(part)]
            break
        if part == "of":
            model = steps_.Branch
            break
        if part == "chain":
            model = ChainState
            break
        if part in ("files", "regions", "roles"):
            model = {"files": File, "regions": Region, "roles": Role}[str(part)]
            break
    hidden = ("name", "path") if model is Workload else ()
    return [f.alias or n for n, f in model.model_fields.items() if n not in hidden]


def _check(w: Workload) -> None:
    """What no single key shows: names that steps use, and how roles are started."""

    def wrong(problem: str, fix: str = _HELP) -> UserError:
        return UserError(problem, where=w.path, fix=fix)

    def known(word: str, among: Iterable[str], what: str, key: str) -> None:
        among = list(among)
        if word not in among:
            raise wrong(
                f'{key}: no {what} "{word}"{closest(word, among)}',
                f"the {what}s are {', '.join(among) or 'none'}",
            )

    for name, region in w.regions.items():
        key = f"regions.{name}"
        if region.file is not None:
            known(region.file, w.files, "file", f"{key}.file")
            if region.size > w.files[region.file].size:
                raise wrong(f"{key}: larger than its file {region.file}", "make the file as large")
            if region.per == "process" and w.files[region.file].per == "thread":
                raise wrong(f"{key}: one region of all threads cannot map a file per thread")
        if region.kind == "heap" and (region.file or region.shared or region.count > 1):
            raise wrong(f"{key}: a heap is anonymous, private and one")
    heaps = [name for name, region in w.regions.items() if region.kind == "heap"]
    if len(heaps) > 1 or any(w.regions[name].per == "thread" for name in heaps):
        raise wrong('a process has one heap: give one region kind = "heap" and per = "process"')
    lists = [("setup", "setup", w.setup)]
    for name, role in w.roles.items():
        lists += [(name, f"roles.{name}.once", role.once), (name, f"roles.{name}.loop", role.loop)]
        for at, state in role.chain.items():
            lists.append((name, f"roles.{name}.chain.{at}.steps", state.steps))
            for word in state.next:
                among = role.chain if role.threads is not None else [*role.chain, END]
                known(word, among, "state", f"roles.{name}.chain.{at}.next")
        _check_phases(role, f"roles.{name}", known, wrong)
    started: dict[str, str] = {}
    for owner, key, steps in lists:
        for step in walk(steps):
            _check_step(w, owner, key, step, known, wrong)
            if isinstance(step, steps_.Spawn | steps_.Fork):
                before = started.setdefault(step.role, step.do)
                if before != step.do:
                    raise wrong(f"{key}: role {step.role} is both spawned and forked")
    for name, role in w.roles.items():
        if (role.threads is None) != (name in started):
            raise wrong(
                f"roles.{name}: it is started by {'another role' if name in started else 'nobody'}"
                f" and threads is {'given' if role.threads is not None else 'missing'}",
                "remove threads" if name in started else 'say how many threads, or "rest"',
            )
        if role.loop and role.chain:
            raise wrong(f"roles.{name}: both a loop and a chain")
        if END in role.chain:
            raise wrong(f'roles.{name}.chain: "{END}" is where a chain ends', "name it otherwise")
        if name in started and (role.loop or not _ends(role.chain)):
            raise wrong(
                f"roles.{name}: a role that is started again and again does not end",
                f'use once, or a chain that comes to "{END}" from each state',
            )
        if name not in started and not role.loop and not role.chain:
            raise wrong(f"roles.{name}: loop is missing", "say what it does for ever")
    given = [role.threads for role in w.roles.values()]
    if given.count("rest") > 1:
        raise wrong('more than one role has threads = "rest"')
    if any(isinstance(count, float) for count in given) and "rest" not in given:
        raise wrong(
            "shares of the threads, and no role has the others", 'give one threads = "rest"'
        )
    for name in started:
        lonely = steps_.Spawn | steps_.Fork | steps_.Join | steps_.Barrier
        for step in w.roles[name].steps():
            if isinstance(step, lonely):
                raise wrong(f"roles.{name}: no {step.do} in a role that another one starts")
    every = [step for role in w.roles.values() for step in role.steps()]
    if not any(getattr(step, "counts", 0) for step in every):
        raise wrong("no step counts: ops_per_s would be 0", "give a step counts = 1")


def _check_phases(role: Role, key: str, known: Any, wrong: Any) -> None:
    """Each state is of a phase, goes on within it, and each phase has states."""
    if role.phases and role.threads is None:
        raise wrong(f"{key}: a role that another one starts has no phases", "remove phases")
    for at, state in role.chain.items():
        place = f"{key}.chain.{at}"
        if state.phase is None:
            if role.phases:
                raise wrong(f"{place}: phase is missing", f"name one of {', '.join(role.phases)}")
            continue
        known(state.phase, role.phases, "phase", f"{place}.phase")
        for word in state.next:
            if role.chain[word].phase != state.phase:
                raise wrong(f"{place}.next: {word} is of another phase", "go on in the same one")
    empty = role.phases.keys() - {state.phase for state in role.chain.values()}
    if empty:
        raise wrong(f"{key}.phases: {min(empty)} has no state in the chain")


def _ends(chain: dict[str, ChainState]) -> bool:
    """Whether a chain comes to its end from each of its states."""
    ending = {END}
    while True:
        more = {word for word, state in chain.items() if ending & state.next.keys()} - ending
        if not more:
            return chain.keys() <= ending
        ending |= more


def _check_step(w: Workload, owner: str, key: str, step: Any, known: Any, wrong: Any) -> None:
    key = f"{key} ({step.do})"
    on = getattr(step, "on", None)
    if on is not None:
        known(on, w.regions, "region", key)
        region = w.regions[on]
        if owner == "setup" and region.per == "thread":
            raise wrong(f"{key}: region {on} belongs to threads, and setup runs before them")
        if (region.kind == "heap") != isinstance(step, steps_.Brk) and isinstance(
            step, steps_.Brk | steps_.Mmap | steps_.Munmap | steps_.Mremap
        ):
            raise wrong(f"{key}: region {on} is {'' if region.kind == 'heap' else 'not '}the heap")
        span = getattr(step, "size", None)
        most = span[1] if isinstance(span, tuple) else (span or 0)
        if most + (getattr(step, "first", None) or 0) > region.size:
            raise wrong(f"{key}: reaches over the end of region {on}", "make the region larger")
        if isinstance(step, steps_.Pick) and region.count == 1:
            raise wrong(f"{key}: region {on} is one; nothing to pick")
        if isinstance(step, steps_.Mremap) and region.file is not None:
            raise wrong(f"{key}: region {on} maps a file; mremap is for anonymous memory here")
    for word in ("role", "woken_by"):
        if getattr(step, word, None) is not None:
            known(getattr(step, word), w.roles, "role", key)
    if getattr(step, "part", "") == "own" and w.regions[step.on].per == "thread":
        raise wrong(f"{key}: region {step.on} is the thread's own already")
    if owner == "setup" and isinstance(
        step, steps_.Barrier | steps_.Spawn | steps_.Fork | steps_.Join
    ):
        raise wrong(f"{key}: not in setup")

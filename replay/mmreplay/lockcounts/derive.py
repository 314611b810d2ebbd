"""A model file for a kernel that counts differently: the closest model, and the programs
of other releases that explain its counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmreplay.errors import UserError, require_no_device
from mmreplay.lockcounts.check import check_kernel, programs
from mmreplay.lockcounts.file import COLUMNS, Counted
from mmreplay.lockcounts.verify import Line, Verification, meaning
from mmreplay.locking import load_model, program_texts
from mmreplay.locking.loader import load_source
from mmreplay.locking.problems import ModelError
from mmreplay.locking.source import parse_source

if TYPE_CHECKING:
    from mmreplay.locking.model import LockingModel

_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Derived:
    """A model file's text, the model that it extends, and phases that still differ."""

    text: str
    base: str
    unexplained: tuple[str, ...]


Programs = dict[str, tuple[str, str]]  # name -> text, the model that it is from


def derive(verification: Verification, name: str) -> Derived:
    """Extend a model by programs of others that count like this kernel.

    The model is the compared one, or the shipped one that is much closer.

    A program is taken over only where the model then replays to exactly what was counted
    in the phase that asked for it, and still does in every phase that agreed before.

    Parameters
    ----------
    verification:
        The comparison.
    name:
        What the model will be called.
    """
    v = verification.closer or verification
    agree = [line for line in v.lines if not line.differs]
    unexplained = list(v.differences)
    taken: Programs = {}
    for line in v.differences:
        if line not in unexplained:
            continue
        for donor in _nearest_first(line.as_models, v.model):
            for candidate in _substitutes(line, v.rows, donor, v.model):
                model = _assembled(v.model, {**taken, **candidate})
                if model is None or _wrong(model, [line], v.rows):
                    continue
                if not _wrong(model, agree, v.rows):
                    taken.update(candidate)
                    still = _wrong(model, unexplained, v.rows)
                    agree += [other for other in unexplained if other not in still]
                    unexplained = still
                    break
            if line not in unexplained:
                break
    return Derived(
        _text(v, name, taken, unexplained), v.model, tuple(line.phase for line in unexplained)
    )


def write(derived: Derived, path: Path) -> None:
    """Write the model beside ``path``, then rename it.

    Raises
    ------
    UserError
        The name cannot be that of a model, or the file cannot be written.
    """
    if path.suffix != ".toml":
        raise UserError(f'"{path}" is not a .toml file', where="--write", fix="name it NAME.toml")
    require_no_device(path)
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(derived.text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write: {error.strerror}", where=str(path), fix="choose another place"
        ) from None
    finally:
        beside.unlink(missing_ok=True)


def _nearest_first(names: Sequence[str], model: str) -> list[str]:
    ours = load_model(model).kernel or (0, 0)

    def distance(name: str) -> int:
        release = load_model(name).kernel or (0, 0)
        return abs(100 * (release[0] - ours[0]) + release[1] - ours[1])

    return sorted(names, key=distance)


def _substitutes(line: Line, rows: Mapping[str, Counted], donor: str, base: str) -> list[Programs]:
    """Sets of programs to try: those of the phase's operations alone, then with all that
    they use and that is different in the donor."""
    texts, ours = program_texts(donor), program_texts(base)
    operations = programs(rows, line.phase, load_model(base))
    used: set[str] = set()
    queue = [op for op in operations if op in texts]
    while queue:
        program = queue.pop()
        if program not in used:
            used.add(program)
            code = "\n".join(row.split("#", 1)[0] for row in texts[program].splitlines())
            queue += [word for word in _WORD.findall(code) if word in texts]
    other = sorted(program for program in used if texts[program] != ours.get(program))
    alone = [program for program in other if program in operations]
    choices = [alone] if alone == other else [alone, other]
    return [{p: (texts[p], donor) for p in choice} for choice in choices if choice]


def _assembled(base: str, programs: Programs) -> LockingModel | None:
    """The base with these programs; None where they do not go together."""
    text = _header(base, "candidate", "a candidate") + _sections(programs)
    try:
        return load_source(parse_source(text.encode(), Path("candidate.toml"), "candidate.toml"))
    except ModelError:
        return None


def _wrong(model: LockingModel, lines: Sequence[Line], rows: Mapping[str, Counted]) -> list[Line]:
    """Those of ``lines`` that ``model`` does not replay to what was counted."""
    if not lines:
        return []
    report = check_kernel({line.phase: rows[line.phase] for line in lines}, model=model)
    taken = {r.phase: tuple(r.replayed.get(c) or 0 for c in COLUMNS[:3]) for r in report.rows}
    return [line for line in lines if taken[line.phase] != line.counted]


def _header(base: str, title: str, notes: str) -> str:
    model = load_model(base)
    kernel = ".".join(map(str, model.kernel)) if model.kernel else "none"
    return (
        f"title = {_quoted(title)}\n"
        f'kernel = "{kernel}"\n'
        f'extends = "{base}"\n'
        f'vma_rules = "{model.vma_rules}"\n'
        f"notes = {_quoted(notes)}\n"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _sections(programs: Programs) -> str:
    if not programs:
        return ""
    out = ["", "[programs]"]
    for program, (text, donor) in sorted(programs.items()):
        out += [f"# as in {donor}", f'{program} = """', text.strip("\n"), '"""']
    return "\n".join(out) + "\n"


def _text(v: Verification, name: str, taken: Programs, unexplained: Sequence[Line]) -> str:
    release = re.split(r"[^0-9.]", v.kernel)[0]
    out = [
        f"# {name}: {v.model} as Linux {release} counts, by mmreplay locks verify ({v.method}).",
        f"# {len(v.lines)} phases compared, {len(v.differences)} different,"
        f" {len(unexplained)} of them not explained here.",
    ]
    for line in v.differences:
        mark = "not explained" if line in unexplained else "explained"
        out.append(f"# {line.phase}: {mark}: {meaning(line, v)}")
    title = f"{v.model}, with what a {release} kernel counted differently"
    notes = "programs were taken over where they replay to the counts"
    return "\n".join(out) + "\n" + _header(v.model, title, notes) + _sections(taken)

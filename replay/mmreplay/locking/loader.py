"""Finding, reading and checking model files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mmreplay.errors import UserError, closest
from mmreplay.locking.assemble import assemble
from mmreplay.locking.declarations import declare
from mmreplay.locking.model import LockingModel
from mmreplay.locking.problems import ModelError, Problem
from mmreplay.locking.source import SourceFile, read_source
from mmreplay.resources import models_dir

_SUFFIX: Final = ".toml"


def model_names() -> list[str]:
    """Names of the shipped models: kernels by release, then designs by name."""
    folder = models_dir("locking")
    return sorted((p.stem for p in folder.glob(f"*{_SUFFIX}")), key=_by_release)


def _by_release(name: str) -> tuple[bool, tuple[int, ...], str]:
    digits = name.removeprefix("linux-").split(".")
    kernel = name.startswith("linux-") and all(d.isdigit() for d in digits)
    return (not kernel, tuple(map(int, digits)) if kernel else (), name)


def list_models() -> list[LockingModel]:
    """All shipped models, assembled.  Raises ModelError where one has a mistake."""
    return [load_model(name) for name in model_names()]


def load_model(name_or_path: str | Path) -> LockingModel:
    """Load a shipped model by name, or any model file by path (it ends in ``.toml``).

    Raises
    ------
    UserError
        Unknown name (with the closest and the list), unreadable file, or mistakes in
        the file (:class:`~mmreplay.locking.problems.ModelError`, first mistake shown).
    """
    source = read_source(*_locate(str(name_or_path)))
    problems: list[Problem] = []
    model = _load(source, problems)
    if model is None:
        raise ModelError(problems)
    return model


def check_file(path: str | Path) -> tuple[LockingModel | None, tuple[Problem, ...]]:
    """All mistakes of one model (name or path), sorted; the model where there are none."""
    problems: list[Problem] = []
    try:
        model = _load(read_source(*_locate(str(path))), problems)
    except ModelError as error:
        return None, error.problems
    return model, tuple(sorted(set(problems)))


def program_texts(name_or_path: str | Path) -> dict[str, str]:
    """Program name → its text as written, with those that the model extends.

    Raises
    ------
    UserError
        As :func:`load_model`, for names and files.
    """
    source = read_source(*_locate(str(name_or_path)))
    found: dict[str, str] = {}
    above: set[Path] = set()
    while source.path not in above:
        above.add(source.path)
        for name, text in source.data.get("programs", {}).items():
            found.setdefault(str(name), str(text))
        if "extends" not in source.data:
            break
        source = _find_base(str(source.data["extends"]), source)
    return found


def load_source(source: SourceFile) -> LockingModel:
    """Assemble a model that is already read (tests, generated models).  Raises ModelError."""
    problems: list[Problem] = []
    model = _load(source, problems)
    if model is None:
        raise ModelError(problems)
    return model


def _load(source: SourceFile, problems: list[Problem]) -> LockingModel | None:
    try:
        declared = declare(source, _find_base, problems)
    except ModelError as error:
        problems += error.problems
        return None
    return assemble(declared, problems)


def _locate(name: str) -> tuple[Path, str]:
    if name.endswith(_SUFFIX) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UserError(
                "no such model file", where=name, fix="mmreplay models list shows the shipped ones"
            )
        return path.resolve(), name
    path = models_dir("locking") / f"{name}{_SUFFIX}"
    if name not in model_names():
        raise UserError(
            f'unknown model "{name}"{closest(name, model_names())}',
            fix=f"one of {', '.join(model_names())}, or the path of a .toml file",
        )
    return path, f"models/locking/{path.name}"


def _find_base(name: str, user: SourceFile) -> SourceFile:
    """The file that ``extends = name`` means: beside the user's file, else shipped."""
    beside = user.path.parent / (name if name.endswith(_SUFFIX) else f"{name}{_SUFFIX}")
    if beside.is_file() and beside.resolve() != models_dir("locking") / beside.name:
        return read_source(beside.resolve(), str(Path(user.name).parent / beside.name))
    if name in model_names():
        return read_source(
            models_dir("locking") / f"{name}{_SUFFIX}", f"models/locking/{name}.toml"
        )
    known = sorted({*model_names(), *(p.stem for p in user.path.parent.glob(f"*{_SUFFIX}"))})
    raise ModelError(
        [user.problem(f'extends unknown model "{name}"{closest(name, known)}', "", "extends")]
    )

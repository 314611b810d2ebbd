"""From a kernel release, as ``uname -r`` prints it, to the model that stands for it."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from mmreplay.errors import UserError, closest
from mmreplay.locking.loader import load_model, model_names
from mmreplay.locking.model import LockingModel
from mmreplay.locking.vendors import vendor_of
from mmreplay.resources import models_dir

_KERNEL_KEY: Final = re.compile(r'^kernel = "(\d+)\.(\d+)"', re.MULTILINE)
_RELEASE: Final = re.compile(r"^(?:linux-)?v?(\d{1,4})\.(\d{1,5})(?=$|[.\-+_~a-zA-Z])")
#: Last minor of each major number that has ended (kernel.org).
_LAST_MINOR: Final = {2: 6, 3: 19, 4: 20, 5: 19, 6: 19}


def resolve_kernel(release: str) -> tuple[LockingModel, str]:
    """The newest model that is not newer than ``release``, and a note that says so.

    ``release`` is a model's name, a path of a model file, or a release like
    ``6.8.12-300.x86_64``.  The note is empty when the model was named exactly; it
    carries a warning for vendor kernels, whose number does not tell what they backport
    (``models/vendors.toml``, which may also name another model).

    Raises
    ------
    UserError
        Not a release and not a model, or older than every model.
    """
    text = release.strip()
    if text in model_names() or text.endswith(".toml") or "/" in text:
        return load_model(text), ""
    match = _RELEASE.match(text)
    kernels = _kernels()
    if match is None:
        raise UserError(
            f'unknown kernel or model "{release}"{closest(text, model_names())}',
            fix=f"give a release such as {_dotted(max(kernels))}, or the name of a model: "
            "mmreplay models list",
        )
    wanted = (int(match.group(1)), int(match.group(2)))
    _check_exists(release, wanted, max(kernels))
    older = [version for version in kernels if version <= wanted]
    vendor = vendor_of(text)
    listed = vendor.models.get(_dotted(wanted), "") if vendor else ""
    if not older and (vendor is None or not vendor.floor):
        first = min(kernels)
        raise UserError(
            f'kernel "{release}" is older than every model (the first is {_dotted(first)})',
            fix=f"give {_dotted(first)} to {_dotted(max(kernels))}: mmreplay models list",
        )
    if vendor is not None and listed:
        name, why = listed, f"what {vendor.name} of {_dotted(wanted)} is taken for"
    elif older:
        name, why = kernels[max(older)], f"the newest model not newer than {_dotted(wanted)}"
    else:
        assert vendor is not None
        name, why = vendor.floor, f"the oldest model: {_dotted(wanted)} has none"
    if not listed and wanted > max(kernels):
        why += ", which is older: what changed since is not in it"
    model = load_model(name)
    note = f"kernel {text}: using {model.name}, {why}"
    if vendor is not None and not vendor.tells:
        note += (
            f"; warning: this looks like {vendor.name}, whose number does not tell what was"
            f" backported{f' ({vendor.known})' if vendor.known else ''}: mmreplay locks verify,"
            " run there, tells"
        )
    return model, note


def _check_exists(release: str, wanted: tuple[int, int], newest: tuple[int, int]) -> None:
    major, minor = wanted
    last = _LAST_MINOR.get(major)
    if last is not None and minor > last:
        what = f"the last {major}.x was {major}.{last}"
    elif major > newest[0] + 1:
        what = f"the newest model is of {_dotted(newest)}"
    else:
        return
    near = _nearest(wanted)
    meant = f' (did you mean "{near}"?)' if near else ""
    raise UserError(
        f'no kernel "{release}" is known: {what}{meant}',
        fix="give a release as uname -r prints it, or a model of mmreplay models list",
    )


def _nearest(wanted: tuple[int, int]) -> str:
    """The model that was meant by a release that does not exist; empty where none is near.

    Digits that changed places first (6.81: 6.18), else the last one of that major number.
    """
    major, minor = wanted
    kernels = _kernels()
    turned = (major, int(str(minor)[::-1]))
    if turned in kernels:
        return kernels[turned]
    same = [version for version in kernels if version[0] == major]
    return kernels[max(same)] if same else ""


@cache
def _kernels() -> dict[tuple[int, int], str]:
    """First release -> model name, of the shipped models that stand for kernels.

    Reads one line of each file: a look-up need not assemble them all.
    """
    found: dict[tuple[int, int], str] = {}
    for name in model_names():
        text = (models_dir("locking") / f"{name}.toml").read_text(encoding="utf-8")
        kernel = _KERNEL_KEY.search(text)
        if kernel is not None:
            found[int(kernel.group(1)), int(kernel.group(2))] = name
    return found


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))

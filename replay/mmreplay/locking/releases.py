"""From a kernel release, as ``uname -r`` prints it, to the model that stands for it."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from mmreplay.errors import UserError, closest
from mmreplay.locking.loader import load_model, model_names
from mmreplay.locking.model import LockingModel
from mmreplay.resources import models_dir

#: Fragments of releases whose number does not tell what was backported.
_VENDORS: Final = (
    (re.compile(r"\.?el\d+|rhel|centos|\.alma|\.rocky"), "an enterprise kernel (RHEL family)"),
    (re.compile(r"-android\d*|android"), "an Android kernel"),
    (re.compile(r"uek"), "an Oracle UEK kernel"),
    (re.compile(r"-(aws|azure|gke|gcp|oracle)\b"), "a cloud vendor's kernel"),
    (re.compile(r"amzn|\.cm\d|azl\d|-cos"), "a cloud vendor's kernel"),
    (re.compile(r"-\d+\.\d+-default|-default$|\.sle"), "a SUSE kernel"),
)
_KERNEL_KEY: Final = re.compile(r'^kernel = "(\d+)\.(\d+)"', re.MULTILINE)
_RELEASE: Final = re.compile(r"^(?:linux-)?v?(\d{1,4})\.(\d{1,5})(?=$|[.\-+_~a-zA-Z])")


def resolve_kernel(release: str) -> tuple[LockingModel, str]:
    """The newest model that is not newer than ``release``, and a note that says so.

    ``release`` is a model's name, a path of a model file, or a release like
    ``6.8.12-300.x86_64``.  The note is empty when the model was named exactly; it
    carries a warning for vendor kernels, whose number does not tell what they backport.

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
            fix=f"a release like 6.8.12, or one of {', '.join(model_names())}",
        )
    wanted = (int(match.group(1)), int(match.group(2)))
    older = [version for version in kernels if version <= wanted]
    if not older:
        first = min(kernels)
        raise UserError(
            f'kernel "{release}" is older than every model (the first is {_dotted(first)})',
            fix=f"one of {', '.join(kernels.values())}",
        )
    model = load_model(kernels[max(older)])
    note = f"kernel {text}: using {model.name}, the newest model not newer than {_dotted(wanted)}"
    vendor = next((what for pattern, what in _VENDORS if pattern.search(text.lower())), "")
    if vendor:
        note += (
            f"; warning: this looks like {vendor}, whose number does not tell what was"
            " backported: count its locks and compare before trusting the result"
        )
    return model, note


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

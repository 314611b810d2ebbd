"""Where the shipped content lives (``models/`` and ``datasets/``), and where caches go.

In a wheel they are package data under ``mmreplay/content/``; in a checkout they
are the folders at the repository's root.  Everything reads them through here.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def content_root() -> Path:
    """The folder that holds ``models/`` and ``datasets/``."""
    packaged = _PACKAGE / "content"
    return packaged if packaged.is_dir() else _PACKAGE.parent.parent


def models_dir(kind: str) -> Path:
    """The folder of one kind of model: ``locking``, ``vma``, ``machines`` or ``fitted``."""
    return content_root() / "models" / kind


def datasets_dir(kind: str) -> Path:
    """The folder of one kind of data: ``runs``, ``published``, ``lockcounts`` or ``traces``."""
    return content_root() / "datasets" / kind


def cache_base() -> Path:
    """Where compiled code and measured costs are kept between runs."""
    if own := os.environ.get("MMREPLAY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmreplay"

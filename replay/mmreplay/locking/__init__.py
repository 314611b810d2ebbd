"""Locking models: data files (``models/locking/*.toml``) that say how a kernel locks.

``load_model(name_or_path)`` gives the assembled model, ``list_models()`` the shipped
ones, ``resolve_kernel(release)`` the model for a kernel release, and
``check_file(path)`` every mistake of a file.
"""

from mmreplay.locking.loader import check_file, list_models, load_model, program_texts
from mmreplay.locking.releases import resolve_kernel

__all__ = ["check_file", "list_models", "load_model", "program_texts", "resolve_kernel"]

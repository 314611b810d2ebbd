"""Sessions for developers: the suite on every supported Python, lint, and the dependency locks."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "venv"


def _install(session: nox.Session, lock: str) -> None:
    session.install("--require-hashes", "-r", f"requirements/{lock}.lock")
    session.install("--no-deps", "--no-build-isolation", "-e", ".")


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The test suite, as ``make test`` runs it."""
    _install(session, "dev")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """The readers of recordings, binary and text, on many damaged files (hours)."""
    _install(session, "dev")
    session.run(
        "python", "-m", "pytest", "tests/importers/test_perf_data_fuzz.py",
        "tests/importers/test_text_fuzz.py",
        env={"MMREPLAY_FUZZ_EXAMPLES": "200000"},
    )  # fmt: skip


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint and types."""
    _install(session, "dev")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


@nox.session
def lock(session: nox.Session) -> None:
    """Write the hashed requirement locks anew (they record no registry address)."""
    session.install("uv")
    for name, extras in (("run", ["source"]), ("dev", ["source", "dev"])):
        session.run(
            "uv", "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.11",
            "--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url", "--quiet",
            *[word for extra in extras for word in ("--extra", extra)],
            "-o", f"requirements/{name}.lock",
        )  # fmt: skip

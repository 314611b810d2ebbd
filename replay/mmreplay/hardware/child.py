"""A small process that does dangerous things for us, asked over a pipe."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

from mmreplay.errors import UserError

_PACKAGE: Final = Path(__file__).resolve().parents[2]


class Child:
    """Runs ``main()`` of a module in a process and session of its own.  A context manager.

    It starts when first asked, and anew when asked after it has died.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.renew()

    def renew(self) -> None:
        """End the process; the next request starts another one."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(p for p in (str(_PACKAGE), os.environ.get("PYTHONPATH", "")) if p)
        return subprocess.Popen(
            [sys.executable, "-c", f"from {self._module} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def ask(self, request: Any) -> Any:
        """The process's answer.

        Raises
        ------
        UserError
            It was killed.
        """
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(request, process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, BrokenPipeError):
            code = process.wait()
            self.renew()
            if code < 0:
                raise UserError(
                    "the process that performs the operations was killed by"
                    f" {signal.Signals(-code).name}",
                    fix="see the kernel's log for why (out of memory?), and run again",
                ) from None
            raise RuntimeError(f"the process that performs operations ended with {code}") from None


def pipes() -> tuple[BinaryIO, BinaryIO]:
    """In such a process: where requests come from and answers go to.

    Whatever else is printed goes to stderr, and Ctrl-C is left to who asks.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return sys.stdin.buffer, answers

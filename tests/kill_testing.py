"""Kill a piece of work in its middle, as a power cut or `kill -9` would."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable


def killed_at_flush(work: Callable[[], object], flushes: int) -> bool:
    """Run `work` in a copy of this process that is killed with SIGKILL when it flushes a file to
    the disk for the (flushes + 1)th time. Returns whether it was killed; False = it came to its
    end before.

    A program that writes safely flushes at each of its turning points, so going through 0, 1, 2, …
    until nothing is killed any more goes through all of them.

    Raises:
        RuntimeError: the work raised an exception.
    """
    with warnings.catch_warnings():
        # The copy only writes files and dies, so threads of the original cannot matter to it.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            _kill_in(flushes)
            work()
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)  # no cleaning up of what belongs to the original
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status != 0:
        raise RuntimeError(f"the work failed in the copy of the process (wait status {status})")
    return False


def _kill_in(flushes: int) -> None:
    flush = os.fsync
    left = flushes

    def counting(descriptor: int) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        flush(descriptor)

    os.fsync = counting

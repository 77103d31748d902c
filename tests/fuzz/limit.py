"""A limit on the time that a test case may take, so that a hang is a failure and not a build that never ends."""

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 6  #: a case that does not react is killed after so many limits


class HangError(AssertionError):
    """A case took longer than it may."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `HangError` in the block after so many seconds.

    What hangs in a library's C code cannot be interrupted: after `GRACE` times as long the process prints where it
    is and ends.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise HangError(f"not finished after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(GRACE * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""Ctrl-C and SIGTERM end a command once, in order; a second one does not disturb the ending."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Inside, the first signal raises KeyboardInterrupt in the main thread; the later ones do nothing."""

    def end(number: int, _: FrameType | None) -> None:
        for which in before:
            signal.signal(which, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {which: signal.signal(which, end) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)

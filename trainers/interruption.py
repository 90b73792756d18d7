"""SIGINT and SIGTERM: when they stop a run, and how its processes agree on that."""

import signal
import sys

from trainers import devices


class Interruption:
    """Notes the first SIGINT or SIGTERM, so that the step can end; the second kills.

    Args:
        sum_over_hosts: callable of `devices.sum_over_hosts`.

    Attributes:
        signal: int, the signal that came to any process of the run, or None; the same
            in all of them from one step to the next.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, sum_over_hosts=list):
        self.signal = None
        self._sum = sum_over_hosts
        self._noted = None
        self._is_awaited = False
        self._handlers = {}

    def __enter__(self):
        for number in self.SIGNALS:
            self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        # What another process has stopped is told to stop itself soon: not to die.
        if self.signal is None or self._noted is not None:
            self._restore()

    def meet(self):
        """Waits for all processes, and takes over what was noted in any of them."""
        noted = self._sum([float(self._noted == number) for number in self.SIGNALS])
        if self.signal is None:
            came = (number for number, n in zip(self.SIGNALS, noted, strict=True) if n)
            self.signal = next(came, None)

    def ends(self, function, *args):
        """What a function returns, or None where a signal ends it, at once.

        The function must leave nothing half done. Where there are several processes
        none ends it: the others would wait.
        """
        try:
            try:
                self._is_awaited = not devices.is_multi_worker()
                if self._is_awaited and self._noted is not None:
                    raise _Stop
                return function(*args)
            finally:
                self._is_awaited = False
        except _Stop:
            self.meet()
            return None

    def _note(self, number, _frame):
        self._noted = number
        self._restore()
        if self.signal is None:
            print("interrupted: saving before the next step", file=sys.stderr)
        if self._is_awaited:
            raise _Stop

    def _restore(self):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


class _Stop(BaseException):
    """Ends what is interrupted at once."""

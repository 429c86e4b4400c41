"""Signals stop a run, which first saves its state; a second signal ends the process at once.

`Interrupts` may end the process, so only commands use it; in a library call nothing listens.
"""

import os
import signal
import socket
import threading

from digits_jax.console import console, end_display
from digits_jax.errors import SAVED

# Ctrl-C, Ctrl-Break of Windows, a lost terminal, and what clusters and init systems send. Not each
# system has all of them.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")


def stopping() -> tuple[signal.Signals, ...]:
    """The signals that stop a run, except those that are ignored: `nohup` keeps working."""
    known = (getattr(signal, name) for name in NAMES if hasattr(signal, name))
    return tuple(one for one in known if signal.getsignal(one) is not signal.SIG_IGN)


class NoInterrupts:
    """The interface of `Interrupts` for a run that is never asked to stop."""

    begun = False

    def __enter__(self) -> "NoInterrupts":
        return self

    def __exit__(self, *_: object) -> None: ...

    def asked(self) -> bool:
        """Whether the run is to stop."""
        return False


class Interrupts(NoInterrupts):
    """A context manager in which `asked()` says whether a signal came.

    A thread listens, since Python's own handlers wait for the main thread, which may be compiling.
    Until `begun` is set there is nothing to save, and a signal ends the process at once. Outside of
    the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._asked = self.begun = False

    def __enter__(self) -> "Interrupts":
        main = threading.current_thread() is threading.main_thread()
        self._before = {one: signal.getsignal(one) for one in (stopping() if main else ())}
        if self._before:
            self._listen, self._wake = socket.socketpair()
            self._wake.setblocking(False)
            self._fd = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
            for one in self._before:
                signal.signal(one, lambda *_: None)
            self._thread = threading.Thread(target=self._hear, daemon=True)
            self._thread.start()
        return self

    def asked(self) -> bool:
        return self._asked

    def _hear(self) -> None:
        while number := self._listen.recv(1):
            if number[0] not in self._before:
                continue
            if self._asked:
                end_display()
                os._exit(128 + number[0])
            self._asked = True
            if not self.begun:
                console.print("Stopped before the first step; the same command starts again.")
                end_display()
                os._exit(SAVED)
            console.print("Stopping: saving what is done; a second signal exits at once.")

    def __exit__(self, *_: object) -> None:
        if self._before:
            for one, handler in self._before.items():
                signal.signal(one, handler)
            signal.set_wakeup_fd(self._fd)
            self._wake.close()  # which ends the thread
            self._thread.join()
            self._listen.close()

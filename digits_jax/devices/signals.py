"""Signals as a wish to stop: the loop saves and leaves, a second one leaves at once.

For commands alone, since it ends the process: `launch.py` gives `Interrupts` to what trains.
"""

import os
import signal
import socket
import threading
from typing import Any

from digits_jax.console import console
from digits_jax.errors import SAVED

# Ctrl-C, Ctrl-Break of Windows, a lost terminal, and what clusters and init systems send. Not each
# system has all of them.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")


def stopping() -> tuple[signal.Signals, ...]:
    """The signals that ask a run to stop, without those that the process was started to ignore.

    So a run under `nohup` outlives its terminal.
    """
    known = (getattr(signal, name) for name in NAMES if hasattr(signal, name))
    return tuple(one for one in known if signal.getsignal(one) is not signal.SIG_IGN)


class NoInterrupts:
    """Nobody asks a run to stop; what `Interrupts` is like."""

    at_risk = False

    def __enter__(self) -> "NoInterrupts":
        return self

    def __exit__(self, *_: object) -> None: ...

    def asked(self) -> bool:
        """Is it time to stop?"""
        return False


class Interrupts(NoInterrupts):
    """While this context manager is open, `asked()` says whether somebody wants the run to stop.

    A thread listens, since Python's own handlers wait for the main thread, which may be compiling.
    As long as `at_risk` is False there is nothing to save, and it ends the process right away.
    Outside the main thread of a program, where Python takes no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self._asked = self.at_risk = False

    def __enter__(self) -> "Interrupts":
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._listen, self._wake = socket.socketpair()
            self._wake.setblocking(False)
            self._fd = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
            self._before = {one: signal.signal(one, lambda *_: None) for one in stopping()}
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
                os._exit(128 + number[0])
            self._asked = True
            if not self.at_risk:
                console.print("Stopped before the first step; the same command starts again.")
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


def exit_at_once() -> None:
    """From now on such a signal ends the process with the code of what can go on.

    For the time before a run listens itself, and after it, when there is nothing to save. Ctrl-C
    stays a KeyboardInterrupt.
    """
    for one in stopping():
        if one != signal.SIGINT:
            signal.signal(one, lambda *_: os._exit(SAVED))

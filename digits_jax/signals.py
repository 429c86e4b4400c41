"""SIGTERM and SIGINT as a wish to stop: the loop saves and leaves, a second one leaves at once."""

import os
import signal
import socket
import threading
from typing import Any

from digits_jax.console import console
from digits_jax.errors import SAVED

_STOPPING = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
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
            self._before = {one: signal.signal(one, lambda *_: None) for one in _STOPPING}
            self._thread = threading.Thread(target=self._hear, daemon=True)
            self._thread.start()
        return self

    def asked(self) -> bool:
        """Is it time to stop?"""
        return self._asked

    def _hear(self) -> None:
        while number := self._listen.recv(1):
            if number[0] not in _STOPPING:
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

"""One run by several processes, on one or more hosts, with JAX's distributed runtime.

All processes execute the same steps in the same order; each has the members, or the part of every
batch, of its own devices. All write checkpoints, so the workdir must be a folder that they share.
Only the first process prints and writes reports.
https://docs.jax.dev/en/latest/multi_process.html
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import absl.logging
import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

from digits_jax.console import console
from digits_jax.devices import backend
from digits_jax.devices.signals import NAMES, NoInterrupts, stopping
from digits_jax.errors import Stopped, UserError
from digits_jax.types import Array

_HEARTBEAT = 20  # s without one, after which a process counts as lost
_LOG = "runtime-{host}-{number}.log"
_SHUTDOWN = 60  # s to wait for the other processes at the end
_WITNESS = (  # ignores signals, which a cluster may send to each process
    "import signal, sys\n"
    f"for name in {NAMES}:\n"
    "    if hasattr(signal, name): signal.signal(getattr(signal, name), signal.SIG_IGN)\n"
    "sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"
)
_AGAIN = (
    "start all of them again, without --config.resume=False, and they go on from the last epoch"
)


@contextmanager
def joined(
    workdir: str | Path | None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Iterator["type[Interrupts]"]:
    """Joins this process to a run of `processes`; at the end it waits for the others.

    Yields `Interrupts`, which a signal to any of them stops. coordinator: HOST:PORT on which
    process 0 listens. What is None is taken from the cluster's environment (Slurm, Open MPI,
    Kubernetes, Cloud TPU). Raises UserError if that is incomplete, or if another process is lost
    and JAX raises an error. Otherwise JAX's runtime aborts this process; then `_witnessed` prints
    the error line.
    """
    if not workdir:
        raise UserError("several processes need --workdir, a folder that all of them share")
    if coordinator and not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator={coordinator}: it is HOST:PORT of process 0")
    workdir = Path(workdir)
    log = workdir / _LOG.format(host=socket.gethostname(), number=os.getpid())
    lost = (
        "error: this process was killed, or another one of its run has gone; "
        f"{_AGAIN} (what the runtime said: {log})"
    )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from None
    stopped = None
    with backend.quiet(), _number(workdir, process), _witnessed(lost), _runtime_output_to(log):
        try:
            _initialize(coordinator, processes, process)
            console.quiet = not leads()
            try:
                yield Interrupts
            except Stopped as error:  # in all processes, at the same step
                stopped = error
            jax.distributed.shutdown()
        except UserError:
            if leads():  # its end makes JAX end the others, which may have an error to print
                time.sleep(2)
            raise
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"{_line(error)}; if another process has gone: {_AGAIN}") from None
        except OSError:
            raise
        except Exception:  # a bug; without an exit all processes would wait for each other
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        finally:
            if log.exists() and not log.stat().st_size:
                log.unlink(missing_ok=True)
    for log in workdir.glob(_LOG.format(host="*", number="*")):  # also of earlier ends
        log.unlink(missing_ok=True)
    if stopped:
        raise stopped


@contextmanager
def _number(workdir: Path, process: int | None) -> Iterator[None]:
    """Raises UserError if another process has the same number: JAX would end the run of both."""
    if process is None:
        yield
        return
    try:
        with filelock.FileLock(workdir / f".lock-{process}", timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(
            f"another process {process} is training in {workdir}; wait for it, or choose another "
            "--workdir"
        ) from None


def _initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    local = (coordinator or "").startswith(("127.0.0.1:", "localhost:"))
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_SHUTDOWN,
            # By default JAX listens on every network interface.
            coordinator_bind_address=coordinator if local else None,
        )
    except Exception as error:  # each kind of cluster fails in its own way
        raise UserError(f"the processes did not find each other: {_line(error)}") from None
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError("the processes of this run have different numbers of devices")


def several() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


def leads() -> bool:
    """Whether this process prints and writes reports: the first one."""
    return not several() or jax.process_index() == 0


def agree(what: str, *parts: Array | bytes) -> None:
    """Waits for all processes; UserError naming `what` if their `parts` differ."""
    if not several():
        return
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part))
    digests = multihost_utils.process_allgather(np.frombuffer(digest.digest(), np.uint8))
    if (digests != digests[:1]).any():
        raise UserError(f"the processes of this run differ in {what}")


def agree_on(workdir: Path) -> None:
    """Waits until all processes are here; UserError unless they see the same `workdir`."""
    if not several():
        return
    multihost_utils.sync_global_devices("prepared")
    path = workdir / "config.json"
    agree(
        f"what they see in --workdir={workdir}, which has to be a folder that all of them share",
        path.read_bytes() if path.exists() else b"",
    )


def least(number: int) -> int:
    """The smallest of the processes' numbers of bytes, rounded down to MiB."""
    if not several():
        return number
    mebibytes = multihost_utils.process_allgather(np.asarray(number / 2**20, np.float32))
    return int(mebibytes.min()) << 20


@contextmanager
def reports(workdir: Path) -> Iterator[Path]:
    """The folder for reports: `workdir` on the first process, a temporary copy on the others."""
    if leads():
        yield workdir
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", "metrics.jsonl"):
            if (workdir / name).exists():
                shutil.copy(workdir / name, folder)
        yield Path(folder)


class Interrupts(NoInterrupts):
    """`signals.Interrupts` for several processes: a signal to one stops all at the same step.

    JAX's preemption service listens to SIGTERM and has the processes agree on the step, so other
    signals are sent on as SIGTERM. A second signal is ignored, since a cluster may send one to each
    process; a second SIGINT exits at once. `begun` is not used: no process may exit alone.
    """

    def __init__(self) -> None:
        self._steps = 0

    def __enter__(self) -> "Interrupts":
        self._before = {one: signal.getsignal(one) for one in stopping() if one != signal.SIGTERM}
        for one in self._before:
            signal.signal(one, self._hear)
        return self

    def _hear(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
        os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def asked(self) -> bool:
        """Whether the run is to stop; all processes must call it equally often."""
        self._steps += 1
        return multihost_utils.reached_preemption_sync_point(self._steps)


@contextmanager
def _runtime_output_to(log: Path) -> Iterator[None]:
    """Redirects to `log` what JAX's runtime writes to stdout and stderr, not Python's output."""
    before = sys.stdout, sys.stderr
    copies = []
    for number, stream in enumerate(before, 1):
        stream.flush()
        copies.append(os.fdopen(os.dup(number), "w", 1, stream.encoding, stream.errors))
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = copies
    handler = absl.logging.get_absl_handler().python_handler
    handler.stream, stream = sys.stderr, handler.stream
    try:
        yield
    finally:
        for number, copy in enumerate(copies, 1):
            copy.flush()
            os.dup2(copy.fileno(), number)
        (sys.stdout, sys.stderr), handler.stream = before, stream


@contextmanager
def _witnessed(line: str) -> Iterator[None]:
    """Prints `line`, from another process, if this one dies within."""
    command = [sys.executable, "-I", "-c", _WITNESS, line]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as witness:
        try:
            yield
        finally:
            witness.communicate(b"heard")


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

"""Several processes, on one host or on many, as one run: JAX's own distributed runtime.

All do the same in the same order, each with its own devices' share of the members or of every
batch. All write checkpoints, which is why the workdir is one that they share; the first one alone
reports. https://docs.jax.dev/en/latest/multi_process.html
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
from typing import Any

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

_HEARTBEAT = 20  # s without one, and a process counts as gone
_LOG = "runtime-{host}-{number}.log"
_SHUTDOWN = 60  # s that the others are waited for at the end
_WITNESS = (  # a cluster may send its signals to each process
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
    """This process as one of `processes`, until all are through or one ends early.

    Gives what listens to signals for all of them.
    coordinator: HOST:PORT of process 0, where it listens. What is None is taken from the cluster's
    environment (Slurm, Open MPI, Kubernetes, Cloud TPU). Raises UserError where that does not say,
    or where the others are lost and JAX notices in time. Else its runtime aborts the process, and
    `_witnessed` has the last word.
    """
    if not workdir:
        raise UserError("several processes need --workdir, a folder that all of them share")
    workdir = Path(workdir)
    log = workdir / _LOG.format(host=socket.gethostname(), number=os.getpid())
    gone = "error: this process was killed, or another one of its run has gone; "
    runtime = "what the runtime said"
    if coordinator and not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator={coordinator}: it is HOST:PORT of process 0")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from None
    end = f"{gone}{_AGAIN} ({runtime}: {log})"
    with backend.quiet(), _number(workdir, process), _witnessed(end), _apart(log):
        try:
            _initialize(coordinator, processes, process)
            console.quiet = not leads()
            yield Interrupts
            jax.distributed.shutdown()
        except Stopped:  # all of them, at the same step
            jax.distributed.shutdown()
            _forget(workdir)
            raise
        except UserError:
            if leads():  # when it goes, JAX ends the others, which may have something to say
                time.sleep(2)
            raise
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"{_line(error)}; if another process has gone: {_AGAIN}") from None
        except OSError:
            raise
        except Exception:  # a fault of ours; JAX would wait for the others, and they for this one
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        finally:
            if log.exists() and not log.stat().st_size:
                log.unlink(missing_ok=True)
    _forget(workdir)


@contextmanager
def _number(workdir: Path, process: int | None) -> Iterator[None]:
    """Keeps other processes from taking the number that this one was given.

    JAX would end those that are at work when others come with their numbers.
    """
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
            # JAX's own choice is to listen to every network.
            coordinator_bind_address=coordinator if local else None,
        )
    except Exception as error:  # each kind of cluster fails in its own way
        raise UserError(f"the processes did not find each other: {_line(error)}") from None
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError("the processes of this run have different numbers of devices")


def several() -> bool:
    """Is this process one of several?"""
    return jax.distributed.is_initialized()


def leads() -> bool:
    """Is this the process that reports?"""
    return not several() or jax.process_index() == 0


def agree(what: str, *parts: Array | bytes) -> None:
    """Waits for all processes; UserError where they differ in `parts`."""
    if not several():
        return
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part))
    digests = multihost_utils.process_allgather(np.frombuffer(digest.digest(), np.uint8))
    if (digests != digests[:1]).any():
        raise UserError(f"the processes of this run differ in {what}")


def agree_on(workdir: Path) -> None:
    """Waits until all have prepared it; UserError where they do not see the same one."""
    if not several():
        return
    multihost_utils.sync_global_devices("prepared")
    path = workdir / "config.json"
    agree(
        f"what they see in --workdir={workdir}, which has to be a folder that all of them share",
        path.read_bytes() if path.exists() else b"",
    )


def least(number: int) -> int:
    """The least of all processes' numbers."""
    if not several():
        return number
    return (
        int(multihost_utils.process_allgather(np.asarray(number / 2**20, np.float32)).min()) << 20
    )


@contextmanager
def reports(workdir: Path) -> Iterator[Path]:
    """Where this process reports to: `workdir`, or, but for the first, a copy that is thrown away.

    So all do the same, and one leaves a trace.
    """
    if leads():
        yield workdir
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", "metrics.jsonl"):
            if (workdir / name).exists():
                shutil.copy(workdir / name, folder)
        yield Path(folder)


class Interrupts(NoInterrupts):
    """`signals.Interrupts` for several processes: all hear of a signal to one at the same step.

    It is JAX's preemption service that listens to SIGTERM and makes them agree, so other signals
    are passed on as that one; a second says nothing new, since a cluster may send one to each. A
    second SIGINT exits at once.
    """

    # at_risk counts for nothing: the others are at work, so nobody leaves before the next step.

    def __init__(self) -> None:
        self._steps = 0

    def __enter__(self) -> "Interrupts":
        others = [one for one in stopping() if one != signal.SIGTERM]
        self._before: Any = {one: signal.signal(one, self._hear) for one in others}
        return self

    def _hear(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
        os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def asked(self) -> bool:
        """Is it time to stop? Every process has to ask equally often."""
        self._steps += 1
        return multihost_utils.reached_preemption_sync_point(self._steps)


@contextmanager
def _apart(log: Path) -> Iterator[None]:
    """What JAX's runtime writes to file descriptors goes to `log`; what Python prints stays."""
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    copies = [
        os.fdopen(
            *(os.dup(number), "w"), buffering=1, encoding=stream.encoding, errors=stream.errors
        )
        for number, stream in zip((1, 2), before, strict=True)
    ]
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = copies
    handler = absl.logging.get_absl_handler().python_handler
    handler.stream, stream = sys.stderr, handler.stream
    try:
        yield
    finally:
        for number, copy in zip((1, 2), copies, strict=True):
            copy.flush()
            os.dup2(copy.fileno(), number)
        (sys.stdout, sys.stderr), handler.stream = before, stream


@contextmanager
def _witnessed(text: str) -> Iterator[None]:
    """A process of its own says `text` should this one end without getting here again."""
    command = [sys.executable, "-I", "-c", _WITNESS, text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as witness:
        try:
            yield
        finally:
            witness.communicate(b"heard")


def _forget(workdir: Path) -> None:
    """Deletes the logs, also those of ends that are overcome."""
    for log in workdir.glob(_LOG.format(host="*", number="*")):
        log.unlink(missing_ok=True)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

"""Checkpoints by orbax: written in the background; the latest two are kept."""

import errno
import gc
import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from digits_jax.devices.mesh import fetch
from digits_jax.errors import UserError
from digits_jax.types import PyTree

log = logging.getLogger(__name__)
FOLDER = "checkpoints"
PART = "interrupted"  # the folder for an unfinished epoch, which a signal stopped
_DIGEST = "sha256"


class _Manager(ocp.CheckpointManager):
    """An orbax manager that does not use JAX's preemption service.

    Orbax would report its steps there, which are epochs here, as the step that this process has
    reached, and only on the first process; then not all processes would stop at the same step.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one workdir, as a context manager; a step of orbax is an epoch here.

    If one cannot be written, this or a later call raises UserError. create: makes the folder; False
    is for reading alone.
    """

    def __init__(self, workdir: Path, folder: str = FOLDER, *, create: bool = True):
        self.workdir, self._folder = workdir, workdir.absolute() / folder
        self._failed_read = False
        self._manager = _Manager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                create=create,
                preservation_policy=checkpoint_managers.LatestN(2),
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
                enable_async_checkpointing=True,
                # By the wall clock: where that jumps, an hour would be over at once.
                async_options=ocp.AsyncOptions(timeout_secs=10**9),
            ),
            item_names=("state", "meta"),
        )

    def save(self, epoch: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Saves arrays and a JSON-able `meta`, in the background.

        `state` is copied first: the next step donates its buffers while orbax still reads them.
        """
        state = jax.tree.map(jnp.copy, state)
        with self._writing():
            for later in self.epochs():
                if later >= epoch:  # damaged: the resume fell back to an earlier one
                    self._manager.delete(later)
            saved = self._manager.save(
                epoch,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    meta=ocp.args.JsonSave(meta | {_DIGEST: digest(state, meta)}),
                ),
            )
        if not saved:
            raise UserError(f"{self._folder}: orbax declined to save epoch {epoch}")

    def wait(self) -> None:
        """Waits for the save under way: several processes cannot save two things at once."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns any error of a save into a UserError."""
        try:
            yield
        except Exception as error:  # orbax raises whatever its storage layers raise
            raise UserError(
                f"{self._folder}: a checkpoint could not be written ({_reason(error)}); the "
                "command, without --config.resume=False, goes on from the one before"
            ) from None

    def epochs(self) -> list[int]:
        """The epochs that are saved, the latest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def _reader(self) -> ocp.CheckpointManager:
        """A manager to read with; each process has its own, so none waits for one that fails."""
        if jax.process_count() == 1:
            return self._manager
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
        )
        options = ocp.CheckpointManagerOptions(read_only=True, multiprocessing_options=alone)
        return _Manager(self._folder, options=options, item_names=("state", "meta"))

    def restore(self, like: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """-> (epoch, state, meta) of the latest readable checkpoint, or None if there is none.

        like: a tree of arrays or `jax.ShapeDtypeStruct` of the same structure. The state is put on
        one device, however it was sharded. If the latest checkpoint is damaged, a warning is logged
        and the one before is read; UserError if none can be read.
        """
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
        reader, reason = self._reader(), ""
        for epoch in self.epochs():
            try:
                items = reader.restore(
                    epoch,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
                    ),
                )
            except Exception as error:
                self._failed_read = True
                reason = _reason(error)
                log.warning("the checkpoint of epoch %d cannot be read: %s", epoch, reason)
                continue
            state, meta = items["state"], items["meta"]
            if meta.pop(_DIGEST, "") == digest(state, meta):
                return epoch, state, meta
            reason = "its content was altered"  # Orbax would not notice
            log.warning("the checkpoint of epoch %d cannot be read: %s", epoch, reason)
        if reason:
            raise UserError(
                f"{self._folder}: no checkpoint can be read ({reason}); "
                "--config.resume=False starts the run over"
            )
        return None

    def __enter__(self) -> "Checkpoints":
        self._quiet = quiet()
        self._quiet.__enter__()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Waits for the save under way, so that it is not lost."""
        try:
            with self._writing():
                self._manager.wait_until_finished()
                self._manager.close()
        except UserError:
            if kind is None:  # else what ended the run is what counts
                raise
        finally:
            if self._failed_read:  # what it left behind prints errors when it is collected
                gc.collect()
            self._quiet.__exit__(None, None, None)


_hooks_lock = threading.Lock()
_quieted: list[tuple] = []  # the original hooks and level, once for each `quiet` that is open


@contextmanager
def quiet() -> Iterator[None]:
    """Within, orbax logs nothing, and errors in its threads print no traceback.

    Orbax raises them again in its next call. Several threads may be within; the last to leave
    restores the hooks.
    """
    absl = logging.getLogger("absl")

    def filtered(hook: Callable[[Any], object]) -> Callable[[Any], object]:
        return lambda failed: None if _of_orbax(failed.exc_value) else hook(failed)

    with _hooks_lock:
        before: Any
        if not _quieted:
            before = threading.excepthook, sys.unraisablehook, absl.level
            threading.excepthook, sys.unraisablehook = map(filtered, before[:2])
            absl.setLevel(logging.CRITICAL)
        else:
            before = _quieted[0]
        _quieted.append(before)
    try:
        yield
    finally:
        with _hooks_lock:
            _quieted.pop()
            if not _quieted:
                threading.excepthook, sys.unraisablehook, level = before
                absl.setLevel(level)


def _of_orbax(error: BaseException | None) -> bool:
    """Whether orbax or tensorstore raised it, or only the event loops of their threads."""
    trace, packages = error.__traceback__ if error else None, set()
    while trace:
        packages.add(trace.tb_frame.f_globals.get("__name__", "").split(".")[0])
        trace = trace.tb_next
    loops = {"asyncio", "nest_asyncio", "threading", "concurrent"}
    return bool(packages & {"orbax", "tensorstore"}) or (
        "asyncio" in packages and packages <= loops
    )


def digest(state: PyTree, meta: dict[str, Any]) -> str:
    """SHA-256 of arrays, with their paths, dtypes and shapes, and of a JSON-able `meta`."""
    found = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for path, leaf in jax.tree.leaves_with_path(state):
        array = np.asarray(fetch(leaf), order="C")
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(array)
    return found.hexdigest()


def _reason(error: Exception) -> str:
    """The error in one line; an error of the disk by its usual name, if the message has it."""
    text = str(error).strip()
    for known in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(known) in text:
            return os.strerror(known)
    return text.splitlines()[0] if text else repr(error)

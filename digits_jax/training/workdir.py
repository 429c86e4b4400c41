"""A run's folder: its lock, its files, and whether a run can go on there."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
from ml_collections import ConfigDict

from digits_jax import files, settings
from digits_jax.core import optim
from digits_jax.errors import UserError
from digits_jax.training import predictor
from digits_jax.training.checkpoint import FOLDER, PART

RESULTS = (  # the files of a finished run, and what other modes make of it
    "summary.json",
    predictor.FILE,
    "per_class.csv",
    "predictions.csv",
    "pruning.md",
    "curves.png",
    "confusion.png",
    "errors.png",
    "examples.png",
    "augmented.png",
    "calibration.png",
    "robustness.png",
    "pruning.png",
    "filters.png",
    "feature_maps.png",
    "attribution.png",
    "export",
)
_PARTS = (FOLDER, PART, "tensorboard", "metrics.jsonl", predictor.EPOCHS)
# All files of a run; the one that makes it a run is deleted last.
OWN_FILES = (*_PARTS, *RESULTS, "config.json")


@contextmanager
def locked(workdir: Path, again: str) -> Iterator[None]:
    """Makes the folder; other processes cannot train in it meanwhile.

    again: how the run goes on after an error of the disk. Raises UserError where the folder cannot
    be written or another process trains in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have been quicker
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written: {error.strerror}; choose another folder"
        ) from None
    lock = filelock.FileLock(workdir / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"another process is training in {workdir}; wait for it, or choose another --workdir"
        ) from None
    try:
        yield
    except OSError as error:  # a full disk, a folder taken away
        raise UserError(
            f"{error.filename or workdir}: {error.strerror or error}; {again} from the last epoch"
        ) from None
    finally:
        lock.release()


def finished(config: ConfigDict, workdir: Path) -> bool:
    """Whether the workdir holds this run, finished; UserError where it holds another one.

    A run can go on to another number of epochs if that changes none of the finished ones.
    """
    recorded = settings.read(workdir) if config.resume else None
    if recorded is None:
        return False
    changes = settings.changes(recorded, config)
    saved = [int(path.name) for path in workdir.glob(f"{FOLDER}/*") if path.name.isdecimal()]
    kept = (workdir / predictor.FILE).exists()
    more = [field for field, *_ in changes] == ["epochs"]  # or fewer, if not fewer than saved
    schedule = config.optimizer.schedule
    if more and schedule in optim.OVER_ALL_EPOCHS:
        raise UserError(
            f"{workdir} holds a run with epochs={recorded['epochs']}, and config.optimizer.schedule"
            f"={schedule} spreads over all of them: with epochs={config.epochs} it is another run "
            "from its first step on; choose another --workdir, or --config.resume=False to delete "
            "that run and start this one"
        )
    if more and kept and not saved:
        raise UserError(
            f"{workdir} holds a run with epochs={recorded['epochs']} but no checkpoint to go on "
            "from; choose another --workdir, or --config.resume=False to start over"
        )
    if changes and not (more and config.epochs >= max(saved, default=0)):
        raise UserError(
            f"{workdir} holds a run of another config "
            f"({'; '.join(settings.differences(recorded, config))}); choose another "
            "--workdir, or --config.resume=False to delete that run and start this one"
        )
    try:
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    whole = summary.get("config", {}).get("epochs", config.epochs) == config.epochs
    return kept and whole and not more and ("test" in summary or not config.report_test)


def clear(workdir: Path, names: Iterable[str] = OWN_FILES) -> None:
    """Deletes the files of an earlier run, also those that it was killed in writing; no others."""
    for name in names:
        for path in (*workdir.glob(f"{name}.*{files.PART}"), workdir / name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

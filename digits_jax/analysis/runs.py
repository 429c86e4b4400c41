"""A finished run: reading it, choosing where to write, adding results to its summary.json."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import filelock
from ml_collections import ConfigDict

from digits_jax import files
from digits_jax.console import status
from digits_jax.errors import UserError
from digits_jax.training.predictor import Predictor

SUMMARY = "summary.json"
Summary = dict[str, Any]  # or a part of one
_IDENTITY = ("config", "members", "date", "seconds")  # of a summary: equal only for the same run
_PATIENCE = 10  # seconds to wait for other processes that add; training holds the lock for longer


def open_run(config: ConfigDict, workdir: str | Path) -> Predictor:
    """The run of `config` in `workdir`, which reads data from the folders that `config` names.

    Nothing but the name and these folders is taken from `config`: the workdir records the rest.
    Raises UserError as `Predictor` does, and for a run of another config.
    """
    status("loading the run")
    workdir = Path(workdir)
    trained = Predictor(workdir)
    if trained.config.prune.run and trained.config.population.size > 1:
        raise UserError(
            f"{workdir} holds a network pruned to several fractions; prune it to one, for example "
            '--config.prune.fractions="(0.9,)", to use it'
        )
    if trained.config.name != config.name:
        raise UserError(f"{workdir} holds a run of {trained.config.name}, not of {config.name}")
    trained.config.data.update(raw_dir=config.data.raw_dir, cache_dir=config.data.cache_dir)
    return trained


def read_summary(path: Path) -> Summary:
    """A summary.json; {} where it is missing or damaged."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def writable(workdir: str | Path, out: str | Path | None, *names: str) -> Path:
    """The folder that a mode writes into: `out`, which is created, or else `workdir`.

    Called before the work, since it raises UserError where the folder, or one of the files and
    folders `names` in it, cannot be written.
    """
    path = folder = Path(out or workdir)
    if (folder / "config.json").exists() and folder.resolve() != Path(workdir).resolve():
        raise UserError(f"--out={out} holds another run; choose another folder")
    way = "choose another --out" if out else "--out=DIR has this mode write into another folder"
    try:
        if out:
            folder.mkdir(parents=True, exist_ok=True)
        for path in (folder, *(folder / name for name in names)):
            if path.is_dir():
                tempfile.TemporaryFile(dir=path).close()
            elif path.exists():
                path.open("ab").close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); {way}") from None
    return folder


class Addition:
    """A result to be added to a finished run's summary.json, to which other processes may add, too.

    summary: as first read; folder: where to write, as in `writable`; `out` gets a copy of the
    summary. Raises UserError where the run has no accuracy on `split` yet (`later` ends its line),
    where `folder` cannot be written, and where `out` holds another run's summary.
    """

    def __init__(
        self,
        workdir: str | Path,
        out: str | Path | None,
        later: str,
        split: str = "test",
        names: tuple[str, ...] = (),
    ):
        self._path = Path(workdir) / SUMMARY
        self.summary = read_summary(self._path)
        if not self.summary.get(split):
            raise UserError(
                f"{workdir}: no {split} accuracy is reported there yet; {later} afterwards"
            )
        self.folder = writable(workdir, out, *names)
        self._existing()

    def write(self, name: str, result: Summary) -> None:
        """Adds `result` as `name` to the summary as it is now, under the lock that training takes.

        Raises UserError where the run is being trained again, or was since it was opened.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(filelock.FileLock(self.folder / ".lock", timeout=_PATIENCE))
            except filelock.Timeout:
                raise UserError(
                    f"another process is training in {self.folder}; this result is of the run "
                    "before and is not added: run the same command when the training is done"
                ) from None
            except OSError:
                pass  # another user's lock, or a disk without locks
            if not self._same_run(now := read_summary(self._path)):
                raise UserError(
                    f"{self._path.parent} was trained again meanwhile; this result is of the run "
                    "before and is not added: the same command evaluates the new one"
                )
            files.write_json(self.folder / SUMMARY, now | self._existing() | {name: result})

    def _same_run(self, other: Summary) -> bool:
        return bool(other) and all(other.get(key) == self.summary.get(key) for key in _IDENTITY)

    def _existing(self) -> Summary:
        """The summary that will be replaced; {} where there is none yet."""
        path = self.folder / SUMMARY
        if not path.exists():
            return {}
        existing = read_summary(path)
        if not self._same_run(existing):
            raise UserError(
                f"{path} is not of the run in {self._path.parent}; choose another --out"
            )
        return existing

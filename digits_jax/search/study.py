"""A search's trials in Optuna's storage, which several processes share.

With SQLite, whose locks Optuna does not use, a lock file beside the database serialises the
processes. The trials of a process that has ended are queued again with their values. (Optuna's own
heartbeat works within `Study.optimize` alone.)
"""

import dataclasses
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import filelock
import optuna
from ml_collections import ConfigDict
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from digits_jax import settings
from digits_jax.errors import UserError

Space = dict[str, FloatDistribution | CategoricalDistribution]  # by field
Values = dict[str, Any]  # by field of the config
Points = Sequence[tuple[Values, Values]]  # (values, user attributes) of trials
_HEARTBEAT = 30  # seconds between heartbeats
_LOST = 1800  # seconds without one after which a process on another machine counts as ended
_TIMEOUT = 60  # seconds to wait for other processes that write
_PACKAGES = {  # pip's names of database drivers whose modules have other names
    "psycopg": '"psycopg[binary]"',
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "mysql": "mysql-connector-python",
}
# Optuna's errors where another process has finished the trial, or deleted the study.
_GONE = (optuna.exceptions.UpdateFinishedTrialError, ValueError, KeyError)


@dataclasses.dataclass
class Study:
    """A search of `space` for the highest value in at most `limit` trials. Made by `opened`."""

    study: optuna.Study
    lock: AbstractContextManager
    space: Space
    limit: int
    sampler: str
    seed: int
    held: dict[int, optuna.Trial] = dataclasses.field(default_factory=dict)  # of this process

    def ask(self, most: int) -> list[optuna.Trial]:
        """At most `most` new trials, with their values; none once `limit` have been created."""
        trials: list[optuna.Trial] = []
        with self.lock:
            self._requeue()
            while len(trials) < most and len(self._counted()) < self.limit:
                trial = self.study.ask()
                trial.set_user_attr("owner", [platform.node(), os.getpid()])
                trial.set_user_attr("alive", time.time())
                if sum(t.number < trial.number for t in self._counted()) >= self.limit:
                    self.study.tell(trial, state=TrialState.FAIL)  # another process was first
                    break
                self._suggest(trial)
                trials.append(trial)
                self.held[trial.number] = trial
        return trials

    def _suggest(self, trial: optuna.Trial) -> None:
        # Seeded by the trial's number: processes draw different values, and a study is repeatable.
        seed = self.seed + trial.number
        self.study.sampler = (
            optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=True)
            if self.sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        fields: Values = self.space
        if trial.user_attrs.get("default"):  # without the values that lie outside of the space
            queued = self.study.get_trials(deepcopy=False)[trial.number]
            fields = queued.system_attrs.get("fixed_params", {})
        for field in fields:
            d = self.space[field]
            if isinstance(d, CategoricalDistribution):
                trial.suggest_categorical(field, d.choices)
            else:
                trial.suggest_float(field, d.low, d.high, log=d.log)

    def _requeue(self) -> None:
        """Queues the trials of ended processes again, once each."""
        everything = self.study.get_trials(deepcopy=False)
        queued_again = {trial.user_attrs.get("retry_of") for trial in everything}
        for trial in everything:
            if trial.state != TrialState.RUNNING or trial.number in self.held or not _ended(trial):
                continue
            if trial.number not in queued_again:
                values = trial.system_attrs.get("fixed_params", {}) | trial.params
                kept = {k: v for k, v in trial.user_attrs.items() if k == "default"}
                self.study.enqueue_trial(values, user_attrs=kept | {"retry_of": trial.number})
            self.tell(trial.number, state=TrialState.FAIL)

    def tell(
        self, trial: optuna.Trial | int, value: float | None = None, state: TrialState | None = None
    ) -> None:
        """`optuna.Study.tell`; ignores a trial that another process has finished or deleted."""
        self.held.pop(trial if isinstance(trial, int) else trial.number, None)
        with suppress(*_GONE):
            self.study.tell(trial, value, state)

    def fail(self, trial: optuna.Trial) -> None:
        """For a trial that cannot be trained: it has no value, but counts against the limit."""
        trial.set_user_attr("untrainable", True)
        self.tell(trial, state=TrialState.FAIL)

    def report(self, trial: optuna.Trial, value: float, epoch: int) -> None:
        """`optuna.Trial.report`, with the same exception."""
        with suppress(*_GONE):
            trial.report(value, epoch)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in one of `states`, by number."""
        return self.study.get_trials(deepcopy=False, states=states)

    def _counted(self) -> list[FrozenTrial]:
        """The trials that count against the limit: all but those of ended processes."""
        everything = self.study.get_trials(deepcopy=False)
        lost = (TrialState.FAIL, TrialState.WAITING)
        return [t for t in everything if t.state not in lost or t.user_attrs.get("untrainable")]

    def importances(self) -> dict[str, float]:
        """Shares by field (PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255); {} if unknown."""
        complete = self.trials(TrialState.COMPLETE)
        if len(complete) < 4 or len({trial.value for trial in complete}) == 1:
            return {}
        return optuna.importance.get_param_importances(
            self.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """A context in which the trials of this process are marked as alive, for other machines."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(_HEARTBEAT):
                for trial in list(self.held.values()):
                    with suppress(*_GONE, SQLAlchemyError, optuna.exceptions.OptunaError):
                        trial.set_user_attr("alive", time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@contextmanager
def opened(
    config: ConfigDict, workdir: Path, identity: Values, space: Space, points: Points
) -> Iterator[Study]:
    """The study of `config`, created by the first process; UserError if it cannot be used.

    It is in `config.search.storage`, by default in `workdir`. identity: what must be the same in
    all processes; points: the first trials, with a grid all of them.
    """
    name, sampler = config.name, config.search.sampler
    url = config.search.storage or f"sqlite:///{workdir.absolute() / 'study.db'}"
    parsed = usable(url)
    shown, sqlite = _shown(parsed), parsed.get_backend_name() == "sqlite"
    options = {"connect_args": {"timeout": _TIMEOUT}, "poolclass": NullPool} if sqlite else {}
    lock: AbstractContextManager = nullcontext()
    if sqlite:
        lock = filelock.FileLock(f"{parsed.database}.lock", timeout=_TIMEOUT)
    storage, verbosity = None, optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with lock:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
            study = _created(storage, config, identity, points, alone=sqlite)
        differences = settings.differences(study.user_attrs.get("config", {}), identity)
        if differences:
            raise UserError(
                f"the study '{name}' in {shown} searches another config "
                f"({'; '.join(differences)}); choose another --workdir, or --config.resume=False "
                "to delete that study and start this one"
            )
        limit = len(points) if sampler == "grid" else config.search.trials
        yield Study(study, lock, space, limit, sampler, config.seed)
    except (optuna.exceptions.OptunaError, SQLAlchemyError, filelock.Timeout, OSError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        if parsed.password:
            reason = reason.replace(str(parsed.password), "***")
        raise UserError(
            f"the study in {shown} cannot be used: {reason}; nothing in it has changed, and "
            "the same command continues it"
        ) from None
    finally:
        optuna.logging.set_verbosity(verbosity)
        if storage:
            storage.remove_session()
            storage.engine.dispose()


def usable(url: str) -> URL:
    """The parsed URL; UserError, never with a password, where no database can be at it."""
    field = "config.search.storage"
    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
    except NoSuchModuleError:
        raise UserError(
            f"{field}: there is no database '{parsed.drivername}' known to SQLAlchemy; "
            "postgresql, mysql and sqlite are"
        ) from None
    except (ArgumentError, ValueError):  # a port that is no number
        raise UserError(
            f"{field} is no database URL; one looks like postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    except ImportError as error:
        name = (error.name or parsed.get_driver_name()).partition(".")[0]
        raise UserError(
            f"{field}={_shown(parsed)} needs {name}: pip install {_PACKAGES.get(name, name)}"
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(f"{field}={_shown(parsed)} names no file; sqlite:///study.db does")
    return parsed


def _shown(url: URL) -> str:
    """The URL without its password, and without its query, which may contain one."""
    return url.set(query={}).render_as_string(hide_password=True)


def _created(
    storage: optuna.storages.RDBStorage,
    config: ConfigDict,
    identity: Values,
    points: Points,
    alone: bool,
) -> optuna.Study:
    """The study, created if it does not exist; alone: a lock keeps other processes out."""
    name = config.name
    exists = name in optuna.get_all_study_names(storage)
    if exists and config.resume:
        study = optuna.load_study(study_name=name, storage=storage)
        end = time.time() + (0 if alone else _TIMEOUT)  # another process may be creating it
        while "config" not in study.user_attrs and time.time() < end:
            time.sleep(0.1)
        if "config" in study.user_attrs:
            return study
    if exists:  # to be started over, or half created by a process that ended
        optuna.delete_study(study_name=name, storage=storage)
    study = optuna.create_study(
        direction="maximize", storage=storage, study_name=name, load_if_exists=not alone
    )
    for values, attributes in points:
        study.enqueue_trial(values, user_attrs=attributes)
    study.set_user_attr("config", identity)  # last: without it, a study is half created
    return study


def _ended(trial: FrozenTrial) -> bool:
    """Whether the process that trains the trial has ended."""
    node, pid = trial.user_attrs.get("owner", ("", 0))
    here = node == platform.node()
    if here and pid == os.getpid():
        return True  # an earlier process with the same number
    if here and platform.system() != "Windows":  # where signal 0 would end the process
        try:
            os.kill(pid, 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)  # else it is another user's
        return False
    started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    silent = time.time() - trial.user_attrs.get("alive", started)
    return silent > (_LOST if node else _TIMEOUT)

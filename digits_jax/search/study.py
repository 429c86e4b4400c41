"""A search's memory in Optuna's storage: what was tried, what is under way, and who is at it.

Several processes share a study. With SQLite, whose locks Optuna does not use, a lock file beside
the database orders them; the operating system frees it when a process dies. A trial whose process
died is asked for again with the values it had.
"""

import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from digits_jax import settings
from digits_jax.errors import UserError

try:
    import filelock
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
    from sqlalchemy.pool import NullPool
except ImportError as error:
    raise UserError(
        f"--mode=search needs {error.name}: pip install -r requirements-search.txt"
    ) from None

State = optuna.trial.TrialState
Space = dict[str, Any]  # field -> its distribution
FINISHED = (State.COMPLETE, State.PRUNED)
_BEAT, _SILENCE = 30, 1800  # seconds between signs of life; after which another machine's is dead
_PATIENCE = 60  # seconds to wait for others that write
# What pip calls the drivers of databases whose modules have other names.
_PACKAGES = {
    "psycopg": '"psycopg[binary]"',
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "mysql": "mysql-connector-python",
}
_LOST = (optuna.exceptions.UpdateFinishedTrialError, ValueError, KeyError)


class Study:
    """A search of `space` for the highest value, of at most `limit` trials.

    `points` are tried first, in their order. Made by `opened`.
    """

    def __init__(
        self, study: optuna.Study, lock: Any, space: Space, limit: int, sampler: str, seed: int
    ):
        self._study, self._lock, self._space = study, lock, space
        self._limit, self._sampler, self._seed = limit, sampler, seed
        self._held: dict[int, optuna.Trial] = {}

    def ask(self, most: int) -> list[optuna.Trial]:
        """At most `most` trials that nobody else has, with values; none when all are given out."""
        trials: list[optuna.Trial] = []
        with self._lock:
            self._bury()
            while len(trials) < most and len(self._counted()) < self._limit:
                trial = self._study.ask()
                trial.set_user_attr("owner", [platform.node(), os.getpid()])
                trial.set_user_attr("alive", time.time())
                if sum(t.number < trial.number for t in self._counted()) >= self._limit:
                    self._study.tell(trial, state=State.FAIL)  # a server's other client was faster
                    break
                self._suggest(trial)
                trials.append(trial)
                self._held[trial.number] = trial
        return trials

    def _suggest(self, trial: optuna.Trial) -> None:
        # By the trial's number: no two processes draw the same, and a study can be repeated.
        seed = self._seed + trial.number
        self._study.sampler = (
            optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=True)
            if self._sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        given: Any = self._space
        if self.is_default(trial):  # the config's own values may lie outside of the space
            asked = self._study.get_trials(deepcopy=False)[trial.number]
            given = asked.system_attrs.get("fixed_params", {})
        for field in given:
            d = self._space[field]
            if isinstance(d, CategoricalDistribution):
                trial.suggest_categorical(field, d.choices)
            else:
                trial.suggest_float(field, d.low, d.high, log=d.log)

    def _bury(self) -> None:
        """Trials whose process died are queued again, once each."""
        everything = self._study.get_trials(deepcopy=False)
        queued_again = {trial.user_attrs.get("retry_of") for trial in everything}
        for trial in everything:
            if trial.state != State.RUNNING or trial.number in self._held or not _dead(trial):
                continue
            if trial.number not in queued_again:
                values = trial.system_attrs.get("fixed_params", {}) | trial.params
                kept = {k: v for k, v in trial.user_attrs.items() if k == "default"}
                self._study.enqueue_trial(values, user_attrs=kept | {"retry_of": trial.number})
            self.tell(trial.number, state=State.FAIL)

    def tell(self, trial: optuna.Trial | int, value: float | None = None, **how: Any) -> None:
        """As Optuna's; what another process has buried meanwhile stays buried."""
        self._held.pop(trial if isinstance(trial, int) else trial.number, None)
        with suppress(*_LOST):
            self._study.tell(trial, value, **how)

    def spoil(self, trial: optuna.Trial) -> None:
        """It cannot be trained; it counts, so that the search ends, and has no value."""
        trial.set_user_attr("spoilt", True)
        self.tell(trial, state=State.FAIL)

    def report(self, trial: optuna.Trial, value: float, epoch: int) -> None:
        """An intermediate value."""
        with suppress(*_LOST):
            trial.report(value, epoch)

    def trials(self, *states: Any) -> list[Any]:
        """Those in one of `states`, by number."""
        return self._study.get_trials(deepcopy=False, states=states)

    def _counted(self) -> list[Any]:
        """What has been given out and not lost."""
        everything = self._study.get_trials(deepcopy=False)
        lost = (State.FAIL, State.WAITING)
        return [t for t in everything if t.state not in lost or t.user_attrs.get("spoilt")]

    def importances(self) -> dict[str, float]:
        """Shares by field (PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255); {} if unknown."""
        complete = self.trials(State.COMPLETE)
        if len(complete) < 4 or len({trial.value for trial in complete}) == 1:
            return {}
        return optuna.importance.get_param_importances(
            self._study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )

    @staticmethod
    def is_default(trial: Any) -> bool:
        return bool(trial.user_attrs.get("default"))

    @contextmanager
    def signs_of_life(self) -> Iterator[None]:
        """Within, other machines see that this process is at work on what it asked for."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(_BEAT):
                for trial in list(self._held.values()):
                    with suppress(*_LOST, SQLAlchemyError, optuna.exceptions.OptunaError):
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
    url: str,
    name: str,
    asked: Mapping[str, Any],
    space: Space,
    points: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    *,
    limit: int,
    sampler: str,
    seed: int,
    afresh: bool,
) -> Iterator[Study]:
    """The study `name` at `url`, made by whoever comes first; UserError where it cannot be used.

    asked: what is searched, which must be the same for all; points: (values, user attributes) of
    the first trials; afresh: delete what is there.
    """
    where = usable(url)
    shown, sqlite = _shown(where), where.get_backend_name() == "sqlite"
    options = {"connect_args": {"timeout": _PATIENCE}, "poolclass": NullPool} if sqlite else {}
    lock: AbstractContextManager = nullcontext()
    if sqlite:
        lock = filelock.FileLock(f"{where.database}.lock", timeout=_PATIENCE)
    storage, verbosity = None, optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with lock:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
            study = _made(storage, name, asked, points, afresh, alone=sqlite)
        known = study.user_attrs.get("config", {})
        differences = settings.differences(known, asked)
        if differences:
            raise UserError(
                f"the study '{name}' in {shown} searches another config "
                f"({'; '.join(differences)}); choose another --workdir, or --config.resume=False "
                "to delete that study and start this one"
            )
        yield Study(study, lock, space, limit, sampler, seed)
    except (optuna.exceptions.OptunaError, SQLAlchemyError, filelock.Timeout, OSError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        if where.password:
            reason = reason.replace(str(where.password), "***")
        raise UserError(
            f"the study in {shown} cannot be used: {reason}; what it holds is untouched, and the "
            "same command goes on once it can be"
        ) from None
    finally:
        optuna.logging.set_verbosity(verbosity)
        if storage:
            storage.remove_session()
            storage.engine.dispose()


def usable(url: str) -> URL:
    """The URL, taken apart; UserError, which never shows a password, where nothing can be there."""
    field = "config.search.storage"
    try:
        where = make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number
        raise UserError(
            f"{field} is no database URL; one looks like postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    try:
        dialect = where.get_dialect()
    except NoSuchModuleError:
        raise UserError(
            f"{field}: there is no database '{where.drivername}' known to SQLAlchemy; "
            "postgresql, mysql and sqlite are"
        ) from None
    if where.get_backend_name() == "sqlite" and where.database in (None, "", ":memory:"):
        raise UserError(f"{field}={_shown(where)} names no file; sqlite:///study.db does")
    try:
        dialect.import_dbapi()
    except ImportError as error:
        name = (error.name or where.get_driver_name()).partition(".")[0]
        raise UserError(
            f"{field}={_shown(where)} needs {name}: pip install {_PACKAGES.get(name, name)}"
        ) from None
    return where


def _shown(url: URL) -> str:
    """For people, without the password; in a query, too, there may be one."""
    return url.set(query={}).render_as_string(hide_password=True)


def _made(
    storage: Any, name: str, asked: Mapping[str, Any], points: Any, afresh: bool, alone: bool
) -> optuna.Study:
    there = name in optuna.get_all_study_names(storage)
    if there and afresh:
        optuna.delete_study(study_name=name, storage=storage)
        there = False
    if there:
        study = optuna.load_study(study_name=name, storage=storage)
        end = time.time() + (0 if alone else _PATIENCE)  # whoever made it may be at it yet
        while "config" not in study.user_attrs and time.time() < end:
            time.sleep(0.1)
        if "config" in study.user_attrs:
            return study
        optuna.delete_study(study_name=name, storage=storage)  # its maker died over it
    study = optuna.create_study(
        direction="maximize", storage=storage, study_name=name, load_if_exists=not alone
    )
    for values, attributes in points:
        study.enqueue_trial(dict(values), user_attrs=dict(attributes))
    study.set_user_attr("config", dict(asked))
    return study


def _dead(trial: Any) -> bool:
    """Has the process that asked for it ended?"""
    node, pid = trial.user_attrs.get("owner", ("", 0))
    if node == platform.node():
        if pid == os.getpid():
            return True  # an earlier process had this number
        if platform.system() != "Windows":  # there a signal 0 would end the process
            return not _lives(pid)
    silent = time.time() - trial.user_attrs.get("alive", trial.datetime_start.timestamp())
    return silent > (_SILENCE if node else _PATIENCE)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def inside(distribution: BaseDistribution, value: Any) -> bool:
    """Could it have been drawn?"""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    one: Any = distribution
    return one.low <= value <= one.high


def database(workdir: Path) -> str:
    """The URL of a workdir's own study."""
    return f"sqlite:///{workdir.absolute() / 'study.db'}"

"""Searches the space that a config declares, a round of trials at a time.

The trials of a round that differ in hyperparameters alone are members of one program; what else
differs (batch size, widths, ...) makes another group. Optuna proposes and remembers: a study lies
in `study.db` of the workdir, or at any URL that Optuna's RDB storage knows, where several processes
share it. The test split is never read. Needs requirements-search.txt.
"""

import csv
import itertools
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from digits_jax import figures, settings
from digits_jax import train as loop
from digits_jax.compare import compare_runs
from digits_jax.console import console, percent
from digits_jax.errors import UserError, check_choice, nearest
from digits_jax.population import hyper_of, members_of

try:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool
except ImportError as error:
    raise UserError(
        f"--mode=search needs {error.name}: pip install -r requirements-search.txt"
    ) from None

KINDS = ("log", "uniform", "choice")
SAMPLERS = ("tpe", "random", "grid")
HYPER = ("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout", "label_smoothing")
_FIXED = ("seed", "resume", "report_test", "population", "search", "name", "data", "epochs")
_SILENCE = 1800  # seconds after which another machine's process counts as dead
_PATIENCE = 60  # seconds to wait for a storage that others are writing to

State = optuna.trial.TrialState
Space = dict[str, Any]  # field -> its distribution


def search(config: Any, workdir: Path) -> None:
    """Asks, trains and tells until `config.search.trials` are done; then reports, and retrains.

    Goes on where an earlier process, killed or finished, left the study; the first trial is the
    config as it stands. Writes trials.csv and search.png; with `search.retrain`, the best trial and
    the default are trained on as many fresh seeds, into `workdir/best` and `workdir/default`, and
    compared. Raises UserError for a space that makes no sense and a storage that cannot be used.
    """
    settings.check(config)
    check_choice("config.search.sampler", config.search.sampler, SAMPLERS)
    space = space_of(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from None
    url = config.search.storage or f"sqlite:///{workdir.absolute() / 'study.db'}"
    with _storage(url) as storage:
        study = _study(config, storage, space)
        while trials := _ask(study, config, space):
            _train(study, trials, config, space)
            _report(study, config, workdir, space)
        best = _report(study, config, workdir, space)
    console.print(
        f"[bold]best of {len(_done(study))} trials: number {best.number}, validation "
        f"{percent(best.value)}[/bold]; {_text(_values(best, config, space))}"
    )
    console.print(f"trials.csv and search.png stand in {workdir}")
    if config.search.retrain:
        folders = []
        for name, values in (
            ("default", {}),
            ("best", {} if best.user_attrs.get("default") else _values(best, config, space)),
        ):
            chosen = _changed(config, values)
            chosen.seed, chosen.population.size = config.seed + 1, config.search.retrain
            loop.train(chosen, workdir / name)
            folders.append(workdir / name)
        compare_runs(folders[0], folders[1], workdir)


def space_of(config: Any) -> Space:
    """The distributions of `config.search.space`, which mirrors the config: field -> distribution.

    A field's entry is ("log", low, high), ("uniform", low, high) or ("choice", one, other, ...).
    Raises UserError for an empty space, a field that the config has not, and limits that make no
    sense.
    """
    declared = settings.flatten(config.search.space)
    if not declared:
        raise UserError(
            "config.search.space is empty; declare a field in the config, for example "
            'config.search.space.optimizer = ConfigDict({"learning_rate": ("log", 1e-4, 1e-2)})'
        )
    fields, space = settings.flatten(config), dict[str, Any]()
    for field, entry in declared.items():
        where = f"config.search.space.{field}"
        if field not in fields or field.split(".")[0] in _FIXED:
            known = [name for name in fields if name.split(".")[0] not in _FIXED]
            raise UserError(f"{where}: no field that can be searched; {nearest(field, known)}")
        if not isinstance(entry, list) or len(entry) < 2 or entry[0] not in KINDS:
            raise UserError(
                f"{where} must be like ('log', 1e-4, 1e-2), ('uniform', 0, 0.5) or "
                f"('choice', 64, 128), not {entry}"
            )
        kind, *values = entry
        if kind == "choice":
            space[field] = optuna.distributions.CategoricalDistribution(_labels(values))
            continue
        if len(values) != 2 or not all(isinstance(x, int | float) for x in values):
            raise UserError(f"{where}: {kind} takes two numbers, not {values}")
        low, high = values
        if low > high:
            raise UserError(f"{where}: the lower end {low} lies above the upper one {high}")
        if kind == "log" and low <= 0:
            raise UserError(f"{where}: a logarithmic range must begin above 0, not at {low}")
        space[field] = optuna.distributions.FloatDistribution(low, high, log=kind == "log")
    for i in range(2):  # values at the ends that no run may have
        ends = {field: _end(distribution, i) for field, distribution in space.items()}
        settings.check(_changed(config, _decoded(ends, config)))
    return space


def _labels(values: Sequence[Any]) -> list[str]:
    """Choices may be tuples, of which a storage knows nothing: it gets their text."""
    return [json.dumps(value) for value in values]


def _end(distribution: Any, i: int) -> Any:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return distribution.choices[-i]
    return (distribution.low, distribution.high)[i]


def _decoded(params: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """What a storage holds, as the config has it."""
    fields = config.to_dict()
    decoded = {}
    for field, value in params.items():
        if isinstance(value, str):
            value = json.loads(value)
            like = _get(fields, field)
            value = tuple(value) if isinstance(like, tuple) else value
        decoded[field] = value
    return decoded


def _get(tree: Any, field: str) -> Any:
    for part in field.split("."):
        tree = tree[part]
    return tree


def _changed(config: Any, values: Mapping[str, Any]) -> Any:
    changed = config.copy_and_resolve_references()
    try:
        changed.update_from_flattened_dict(dict(values))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.search.space: {' '.join(str(error).split())}") from None
    return changed


@contextmanager
def _storage(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """The storage, closed afterwards; whatever goes wrong with it is a UserError."""
    sqlite = {"connect_args": {"timeout": _PATIENCE}, "poolclass": NullPool}
    storage = None
    try:
        storage = optuna.storages.RDBStorage(
            url, engine_kwargs=sqlite if url.startswith("sqlite") else {}
        )
        yield storage
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, ImportError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        raise UserError(
            f"the study in {url} cannot be used: {reason}; what it holds is untouched, and the "
            "same command goes on once it can be"
        ) from None
    finally:
        if storage:
            storage.remove_session()
            storage.engine.dispose()


def _study(config: Any, storage: optuna.storages.RDBStorage, space: Space) -> optuna.Study:
    """The study, made by whoever comes first, who also says which trials are fixed beforehand."""
    if not config.resume:
        config.resume = True
        if config.name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=config.name, storage=storage)
    asked = settings.as_dict(config)
    how = asked.pop("search")
    asked["searched"] = {name: how[name] for name in ("space", "epochs", "halving", "sampler")}
    try:
        study = optuna.create_study(direction="maximize", storage=storage, study_name=config.name)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=config.name, storage=storage)
        for _ in range(100):  # whoever made it is about to say what it searches
            if "config" in study.user_attrs:
                break
            time.sleep(0.1)
    else:
        if config.search.sampler == "grid":
            for point in _grid(space, config.search.trials):
                study.enqueue_trial(point)
        else:
            default = _default(config, space)
            study.enqueue_trial(default, user_attrs={"default": True})
        study.set_user_attr("config", asked)
    differences = settings.differences(study.user_attrs.get("config", {}), asked)
    if differences:
        raise UserError(
            f"the study '{config.name}' in {storage.url} searches another config "
            f"({'; '.join(differences)}); choose another --workdir, or --config.resume=False to "
            "delete that study and start this one"
        )
    return study


def _default(config: Any, space: Space) -> dict[str, Any]:
    """The config's own values, as far as they lie within the space."""
    flat, inside = settings.flatten(config), {}
    for field, distribution in space.items():
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            value: Any = json.dumps(flat[field])
            within = value in distribution.choices
        else:
            value = float(flat[field])
            within = distribution.low <= value <= distribution.high
        if within:
            inside[field] = value
    return inside


def _grid(space: Space, trials: int) -> list[dict[str, Any]]:
    """All combinations of the choices and of evenly spaced values, about `trials` of them."""
    choices = {f: d.choices for f, d in space.items() if hasattr(d, "choices")}
    ranges = {f: d for f, d in space.items() if f not in choices}
    each = trials / np.prod([len(c) for c in choices.values()])
    points = max(round(each ** (1 / max(len(ranges), 1))), 1)
    for field, d in ranges.items():
        spaced = np.geomspace if d.log else np.linspace
        choices[field] = np.clip(spaced(d.low, d.high, points), d.low, d.high).tolist()
    return [
        dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values())
    ]


def _ask(study: optuna.Study, config: Any, space: Space) -> list[optuna.Trial]:
    """The next round: at most `search.round` trials, and none beyond `search.trials`."""
    _bury(study)
    trials: list[optuna.Trial] = []
    while len(trials) < config.search.round and len(_counted(study)) < config.search.trials:
        trial = study.ask()
        trial.set_user_attr("owner", [platform.node(), os.getpid()])
        trial.set_user_attr("alive", time.time())
        if sum(t.number < trial.number for t in _counted(study)) >= config.search.trials:
            study.tell(trial, state=State.FAIL)  # another process was faster
            break
        # By the trial's number: no two processes draw the same, and a study can be repeated.
        seed = config.seed + trial.number
        study.sampler = (
            optuna.samplers.TPESampler(seed=seed, multivariate=False)
            if config.search.sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        known = _default(config, space) if trial.user_attrs.get("default") else space
        for field in known:
            d = space[field]
            if isinstance(d, optuna.distributions.CategoricalDistribution):
                trial.suggest_categorical(field, d.choices)
            else:
                trial.suggest_float(field, d.low, d.high, log=d.log)
        trials.append(trial)
    return trials


def _counted(study: optuna.Study) -> list[Any]:
    return study.get_trials(deepcopy=False, states=(State.RUNNING, State.COMPLETE, State.PRUNED))


def _done(study: optuna.Study) -> list[Any]:
    return study.get_trials(deepcopy=False, states=(State.COMPLETE, State.PRUNED))


def _bury(study: optuna.Study) -> None:
    """Trials whose process died are asked for again."""
    for trial in study.get_trials(deepcopy=False, states=(State.RUNNING,)):
        node, pid = trial.user_attrs.get("owner", ("", 0))
        started: Any = trial.datetime_start
        silent = time.time() - trial.user_attrs.get("alive", started.timestamp())
        if node == platform.node():
            dead = pid == os.getpid() or not _lives(pid)  # this process holds none between rounds
        else:
            dead = silent > (_SILENCE if node else _PATIENCE)
        if dead:
            try:
                study.tell(trial.number, state=State.FAIL)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                continue  # another process buries it
            kept = {name: trial.user_attrs[name] for name in trial.user_attrs if name == "default"}
            study.enqueue_trial(trial.params, user_attrs=kept)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _values(trial: Any, config: Any, space: Space) -> dict[str, Any]:
    """field -> value of a trial; those that the default has outside of the space included."""
    flat = settings.flatten(config)
    decoded = _decoded(trial.params, config)
    return {field: decoded.get(field, flat[field]) for field in space}


def _train(study: optuna.Study, trials: list[optuna.Trial], config: Any, space: Space) -> None:
    """Trains a round, group by group, and tells how it went."""
    groups: dict[str, list[tuple[optuna.Trial, Any]]] = {}
    for trial in trials:
        changed = _changed(config, _decoded(trial.params, config))
        changed.epochs = config.search.epochs or config.epochs
        fixed = {f: v for f, v in settings.flatten(changed).items() if f not in HYPER}
        groups.setdefault(json.dumps(fixed), []).append((trial, changed))
    for group in groups.values():
        numbers = ", ".join(str(trial.number) for trial, _ in group)
        console.print(f"[bold]trials {numbers}[/bold]")
        for trial, _ in group:
            console.print(f"  {trial.number:>4}  {_text(_values(trial, config, space))}")
        _train_group(study, group, config.search.halving)


def _train_group(study: optuna.Study, group: list[tuple[optuna.Trial, Any]], halving: int) -> None:
    """Trials of one program; with `halving`, the best 1 / halving of them go on after each rung."""
    config = group[0][1].copy_and_resolve_references()
    config.model.dropout = max(changed.model.dropout for _, changed in group)
    config.population.update(size=len(group), slice=0)
    members = members_of(config, range(len(group)))
    hypers = [hyper_of(changed) for _, changed in group]
    members = members._replace(
        seed=np.full_like(members.seed, config.seed),
        hyper=jax.tree.map(lambda like, *x: np.asarray(x, like.dtype), members.hyper, *hypers),
    )
    run, clock = loop.build(config, members), loop.Clock()
    going = {member: trial for member, (trial, _) in enumerate(group)}
    for epoch in range(1, config.epochs + 1):
        rows = loop.epoch(run, epoch, clock)
        for row in rows:
            member, trial = row["member"], going[row["member"]]
            trial.set_user_attr("alive", time.time())
            trial.report(row["validation_accuracy"], epoch)
            if not math.isfinite(row["loss"]):  # it diverged
                run.stop(member)
                study.tell(going.pop(member), float(run.scores()[member].clip(0)))
        if epoch in rungs(config.epochs, halving):
            scores = run.scores()
            ranked = sorted(going, key=lambda member: -scores[member])
            for member in ranked[-(-len(ranked) // halving) :]:
                run.stop(member)
                study.tell(going.pop(member), state=State.PRUNED)
        if not going:
            break
    for member, trial in going.items():
        study.tell(trial, float(run.scores()[member]))


def rungs(epochs: int, halving: int) -> set[int]:
    """After which epochs trials are dropped: 9 by 3 are 1 and 3 (Jamieson and Talwalkar 2016,
    arXiv:1502.07943); none where `halving` is below 2.
    """
    found = set()
    while halving > 1 and (epochs := epochs // halving):
        found.add(epochs)
    return found


def _report(study: optuna.Study, config: Any, workdir: Path, space: Space) -> Any:
    """Writes trials.csv and search.png of the trials that are done; -> the best of them."""
    done = _done(study)
    with (workdir / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("trial", "state", "epochs", "validation", *space))
        for trial in done:
            values = _values(trial, config, space).values()
            row = (trial.number, trial.state.name.lower(), trial.last_step or 0, trial.value)
            writer.writerow((*row, *values))
    complete = [trial for trial in done if trial.state == State.COMPLETE]
    best = max(complete, key=lambda trial: (trial.value, -trial.number), default=None)
    importances: dict[str, float] = {}
    if len(complete) > 3 and len({trial.value for trial in complete}) > 1:
        with warnings.catch_warnings():  # the evaluator is marked as experimental
            warnings.simplefilter("ignore")
            importances = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
    points = [
        {"trial": t.number, "value": t.value, "pruned": t.state == State.PRUNED}
        | _values(t, config, space)
        for t in done
    ]
    logs = {field for field, d in space.items() if getattr(d, "log", False)}
    figures.search(points, list(space), logs, importances, workdir / "search.png")
    return best


def _text(values: Mapping[str, Any]) -> str:
    def short(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{field} {short(value)}" for field, value in values.items())

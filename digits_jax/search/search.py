"""Searches the space that a config declares, a round of trials at a time.

The trials of a round that differ in hyperparameters alone are members of one program; those that
differ in anything else (batch size, widths, ...) form further groups. Trials never read the test
split; only the runs that are retrained at the end do.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import filelock
import jax
import numpy as np
import optuna
from ml_collections import ConfigDict
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.text import Text

from digits_jax import settings
from digits_jax.analysis.compare import compare_runs
from digits_jax.analysis.describe import layers_of
from digits_jax.console import console, percent, status, warn, warn_drawn
from digits_jax.core import population
from digits_jax.core.population import hyper_of, members_of
from digits_jax.data import batches, dataset
from digits_jax.data.recipes import recipe_of
from digits_jax.devices.signals import NoInterrupts
from digits_jax.errors import UserError, check_choice, nearest
from digits_jax.report import artifacts, figures
from digits_jax.search.study import Points, Space, Study, Values, opened, usable
from digits_jax.training import train as loop
from digits_jax.training.predictor import Predictor
from digits_jax.training.resolve import resolve

KINDS = ("log", "uniform", "choice")
SAMPLERS = ("tpe", "random", "grid")
HYPER = ("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout", "label_smoothing")
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_COMPARISON = "comparison.md"  # as `compare_runs` writes it
_FIXED = ("seed", "resume", "report_test", "population", "search", "name", "data", "epochs")


def search(
    config: ConfigDict,
    workdir: str | os.PathLike | None = None,
    listen: Callable[[], NoInterrupts] = NoInterrupts,
) -> None:
    """Trains `config.search.trials` trials, the first of them with the config's own values.

    Continues a study that exists; writes trials.csv and search.png. With `search.retrain`, the best
    trial and the default (only that, where it is the best) are then trained on as many new seeds
    and compared; only the test split is fair, since the search chose on validation. workdir: by
    default runs/NAME-search, for drawn digits as in `train`; listen: as there, for retraining.
    Raises UserError for a wrong space, an unusable storage, and a teacher it would delete.
    """
    config = config.copy_and_resolve_references()
    settings.check(config)
    check_choice("config.search.sampler", config.search.sampler, SAMPLERS)
    if config.data.folds or not config.data.validation:
        raise UserError("a search needs data.validation, and no data.folds")
    if config.prune.run:
        raise UserError("--mode=search cannot prune: its trials are members of one population")
    space = space_of(config)
    if config.search.storage:
        usable(config.search.storage)
    data, reason = dataset.find(config.data)
    fallback = config.data.source == "auto" and data.source == "drawn"
    config.data.source = data.source
    workdir = Path(workdir or settings.folder_of(config, "search"))
    _keep_teachers(config, workdir, space)
    if fallback:
        warn_drawn(reason)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from None
    dataset.load(config.data)  # missing digits end the search here, not each trial
    points: Points = [(_default(config, space), {"default": True})]
    if config.search.sampler == "grid":
        points = [(point, {}) for point in _grid(space, config.search.trials)]
    with opened(config, workdir, _identity(config), space, points) as study:
        with study.heartbeat():
            while trials := study.ask(config.search.round):
                (workdir / _COMPARISON).unlink(missing_ok=True)  # the best trial may change
                _train(study, trials, config, space)
                _report(study, config, workdir, space)
        best = _report(study, config, workdir, space)
        done, elsewhere = len(study.trials(*_FINISHED)), len(study.trials(TrialState.RUNNING))
    if best:
        values = _values(best, config, space)
        accuracy = percent(best.value or 0.0)
        line = f"best of {done} trials: number {best.number}, validation {accuracy}"
        console.print(Text.assemble((line, "bold"), f"; {_text(values)}"))
        console.print(Text(f"trials.csv and search.png are in {workdir}"))
    if elsewhere:
        console.print(f"{elsewhere} trials still run in other processes, which will report them.")
    elif best and config.search.retrain:
        changed = {} if _same(config, values) else values
        if not changed:
            console.print(
                f"The default is the best of {done} trials: there is nothing to compare it with."
            )
        _retrain(config, workdir, changed, best.number, listen)


def _identity(config: ConfigDict) -> Values:
    """What must be the same in all processes of a study."""
    identity = settings.as_dict(config)
    options = identity.pop("search")
    if config.distill.teacher:
        identity["inputs"] = {"distill.teacher": Predictor(Path(config.distill.teacher)).digest()}
    return identity | {
        "searched": {k: options[k] for k in ("space", "epochs", "halving", "sampler")}
    }


def space_of(config: ConfigDict) -> Space:
    """{field: distribution} of `config.search.space`, which is nested like the config.

    A field's entry is ("log", low, high), ("uniform", low, high) or ("choice", one, other, ...).
    Raises UserError for an empty space, unknown fields, wrong limits, and networks that cannot be
    built.
    """
    declared = settings.flatten(config.search.space)
    if not declared:
        raise UserError(
            "config.search.space is empty; declare a field in the config, for example "
            'config.search.space.optimizer = ConfigDict({"learning_rate": ("log", 1e-4, 1e-2)})'
        )
    known = [name for name in settings.flatten(config) if name.split(".")[0] not in _FIXED]
    space: Space = {}
    for field, entry in declared.items():
        where = f"config.search.space.{field}"
        if field not in known:
            raise UserError(f"{where}: no field that can be searched; {nearest(field, known)}")
        if not isinstance(entry, list) or len(entry) < 2 or entry[0] not in KINDS:
            raise UserError(
                f"{where} must be like ('log', 1e-4, 1e-2), ('uniform', 0, 0.5) or "
                f"('choice', 64, 128), not {entry}"
            )
        kind, *values = entry
        if kind == "choice":
            texts = [json.dumps(value) for value in values]  # a storage holds no tuples
            space[field] = CategoricalDistribution(texts)
            for text in texts:
                changed = _changed(config, _decoded({field: text}))
                settings.check(changed)
                layers_of(changed)
                recipe = recipe_of(dataset.with_classes(changed.data))
                population.program(changed, batches.pipeline_of(changed, recipe, n=1))
            continue
        if len(values) != 2 or not all(isinstance(x, int | float) for x in values):
            raise UserError(f"{where}: {kind} takes two numbers, not {values}")
        low, high = values
        try:
            space[field] = FloatDistribution(low, high, log=kind == "log")
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        for value in values:
            settings.check(_changed(config, {field: float(value)}))
    return space


def _keep_teachers(config: ConfigDict, workdir: Path, space: Space) -> None:
    """UserError where a teacher is in a folder that `_retrain` would first delete."""
    if config.resume or not config.search.retrain:
        return
    field, name = "distill.teacher", rf"(default|trial-\d+)-{config.search.retrain}-seeds"
    choices = getattr(space.get(field), "choices", ())
    for teacher in filter(None, [config.distill.teacher, *map(json.loads, choices)]):
        path = Path(teacher).resolve()
        if path.parent == workdir.resolve() and re.fullmatch(name, path.name):
            raise UserError(
                f"config.{field}={teacher} is where this search trains its best trial, and "
                "--config.resume=False would delete it; choose another --workdir"
            )


def _decoded(params: Values) -> Values:
    """A trial's parameters as config values: choices are JSON in the storage, lists are tuples."""
    decoded = {}
    for field, value in params.items():
        value = json.loads(value) if isinstance(value, str) else value
        decoded[field] = tuple(value) if isinstance(value, list) else value
    return decoded


def _changed(config: ConfigDict, values: Values) -> ConfigDict:
    """A copy of `config` with {field: value}; UserError for a value of the wrong type."""
    changed = config.copy_and_resolve_references()
    try:
        changed.update_from_flattened_dict(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.search.space: {' '.join(str(error).split())}") from None
    return changed


def _default(config: ConfigDict, space: Space) -> Values:
    """The config's own values, as far as they are in the space."""
    own: Values = {}
    for field, value in settings.flatten(config).items():
        match space.get(field):
            case CategoricalDistribution(choices=choices) if json.dumps(value) in choices:
                own[field] = json.dumps(value)
            case FloatDistribution(low=low, high=high) if low <= value <= high:
                own[field] = float(value)
    return own


def _grid(space: Space, trials: int) -> list[Values]:
    """All combinations of the choices and of evenly spaced values: at most `trials` of them."""
    ranges = {field: d for field, d in space.items() if isinstance(d, FloatDistribution)}
    axes: dict[str, list] = {
        f: list(d.choices) for f, d in space.items() if isinstance(d, CategoricalDistribution)
    }
    choices = math.prod(map(len, axes.values()))
    points = 1
    while ranges and choices * (points + 1) ** len(ranges) <= trials:
        points += 1
    if choices > trials or (ranges and points < 2):
        least = choices * 2 ** len(ranges)
        raise UserError(f"config.search.trials={trials}: the smallest grid has {least} points")
    for field, d in ranges.items():
        spaced = np.geomspace if d.log else np.linspace
        axes[field] = np.clip(spaced(d.low, d.high, points), d.low, d.high).tolist()
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _values(trial: optuna.Trial | FrozenTrial, config: ConfigDict, space: Space) -> Values:
    """A trial's {field: value}; for a field that it has no value of, the config's own."""
    own = settings.flatten(config)
    return {field: own[field] for field in space} | _decoded(trial.params)


def _train(study: Study, trials: list[optuna.Trial], config: ConfigDict, space: Space) -> None:
    """Trains a round, group by group, and tells the study the results."""
    groups: dict[str, list[tuple[optuna.Trial, ConfigDict]]] = {}
    for trial in trials:
        changed = _changed(config, _decoded(trial.params))
        changed.epochs = config.search.epochs or config.epochs
        fixed = {f: v for f, v in settings.flatten(changed).items() if f not in HYPER}
        groups.setdefault(json.dumps(fixed), []).append((trial, changed))
    for group in groups.values():
        numbers = ", ".join(str(trial.number) for trial, _ in group)
        console.print(f"trials {numbers}", style="bold")
        try:
            _train_group(study, group, config.search.halving)
        except (UserError, jax.errors.JaxRuntimeError) as error:  # no such network, no memory
            warn(f"trials {numbers} could not be trained: {str(error).splitlines()[0]}")
            for trial, _ in group:
                study.fail(trial)


def _train_group(study: Study, group: list[tuple[optuna.Trial, ConfigDict]], halving: int) -> None:
    """Trains trials as one program; with `halving`, one in `halving` goes on after each rung.

    Prints each trial's score as it ends, with its settings.
    """

    def end(member: int, epoch: int, how: str = "") -> None:
        trial, score = active.pop(member), float(run.scores()[member])
        if how:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, score)
        own = settings.flatten(group[member][1])
        searched = _text({field: own[field] for field in settings.flatten(config.search.space)})
        accuracy = percent(score if math.isfinite(score) else None)
        after = f" ({how} after epoch {epoch})" if how else ""
        console.print(Text(f"{trial.number:>4}  {accuracy}{after}  {searched}"))

    status("preparing the network", brief=True)
    config = group[0][1].copy_and_resolve_references()
    config.model.dropout = max(changed.model.dropout for _, changed in group)
    config.population.update(size=len(group), slice=0)
    members = members_of(config, range(len(group)))
    hypers = [hyper_of(changed) for _, changed in group]
    members = members._replace(
        seed=np.full_like(members.seed, config.seed),
        hyper=jax.tree.map(lambda like, *x: np.asarray(x, like.dtype), members.hyper, *hypers),
    )
    run, clock = loop.build(resolve(config), members), loop.Clock()
    active = {member: trial for member, (trial, _) in enumerate(group)}
    for epoch in range(1, config.epochs + 1):
        for row in loop.train_epoch(run, epoch, clock):
            study.report(active[row["member"]], row["validation_accuracy"], epoch)
        for member in run.diverged.keys() & active.keys():
            end(member, epoch, "diverged")
        if epoch in rungs(config.epochs, halving):
            scores = run.scores()
            ranked = sorted(active, key=lambda member: -scores[member])
            for member in ranked[-(-len(ranked) // halving) :]:
                run.stop(member)
                end(member, epoch, "stopped")
        if not active:
            break
    for member in list(active):
        end(member, config.epochs)


def rungs(epochs: int, halving: int) -> set[int]:
    """The epochs after which trials are dropped: for 9 epochs and 3, 1 and 3; none below 2.

    Successive halving, Jamieson and Talwalkar 2016, arXiv:1502.07943.
    """
    steps = range(1, epochs.bit_length()) if halving > 1 else ()
    return {epochs // halving**i for i in steps} - {0}


def _report(study: Study, config: ConfigDict, workdir: Path, space: Space) -> FrozenTrial | None:
    """Writes trials.csv and search.png of the finished trials; -> the best of them, or None."""
    status("drawing search.png", brief=True)
    done = study.trials(*_FINISHED)
    complete = [trial for trial in done if trial.state == TrialState.COMPLETE]
    if not complete:
        return None
    rows, points = [], []
    for t in done:
        values = _values(t, config, space)
        rows.append((t.number, t.state.name.lower(), t.last_step or 0, t.value, *values.values()))
        pruned = t.state == TrialState.PRUNED
        points.append({"trial": t.number, "value": t.value, "pruned": pruned} | values)
    header = ("trial", "state", "epochs", "validation", *space)
    artifacts.write_csv(workdir / "trials.csv", header, rows)
    logs = {field for field, d in space.items() if isinstance(d, FloatDistribution) and d.log}
    note = artifacts.source_note(config.data.source)
    figures.search(points, list(space), logs, study.importances(), workdir / "search.png", note)
    return max(complete, key=lambda trial: trial.value or 0.0)  # the first of equals


def _retrain(
    config: ConfigDict,
    workdir: Path,
    values: Values,
    number: int,
    listen: Callable[[], NoInterrupts],
) -> None:
    """Trains the default on new seeds, and compares trial `number` with it if it has `values`."""
    seeds = config.search.retrain
    default, best = (workdir / f"{name}-{seeds}-seeds" for name in ("default", f"trial-{number}"))
    runs: dict[Path, Values] = {default: {}} | ({best: values} if values else {})
    try:
        with filelock.FileLock(workdir / "retrain.lock", timeout=0):  # one process at a time
            (workdir / _COMPARISON).unlink(missing_ok=True)
            for folder, changes in runs.items():
                chosen = _changed(config, changes)
                chosen.seed, chosen.population.size = config.seed + 1, seeds
                chosen.search.storage = ""  # it may hold a password
                loop.train(chosen, folder, listen)
            if values:
                compare_runs(default, best, workdir)
    except filelock.Timeout:
        console.print("Another process is retraining already.")


def _same(config: ConfigDict, values: Values) -> bool:
    """Whether `values` are the config's own, up to the rounding of a grid's points."""
    return all(
        isinstance(old, float) and math.isclose(old, new, rel_tol=1e-6)
        for _, old, new in settings.changes(config, _changed(config, values))
    )


def _text(values: Values) -> str:
    return ", ".join(
        f"{field} {value:.3g}" if isinstance(value, float) else f"{field} {value}"
        for field, value in values.items()
    )

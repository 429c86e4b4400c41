"""Searches the space that a config declares, a round of trials at a time.

The trials of a round that differ in hyperparameters alone are members of one program; what else
differs (batch size, widths, ...) makes another group. Trials read the validation split and never
the test split, which the runs retrained at the end read as any run does. Needs
requirements-search.txt.
"""

import csv
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.text import Text

from digits_jax import files, models, settings
from digits_jax.analysis.compare import compare_runs
from digits_jax.console import console, percent, warn, warn_drawn
from digits_jax.core import population
from digits_jax.core.population import hyper_of, members_of
from digits_jax.data import batches, dataset
from digits_jax.data.recipes import RECIPES
from digits_jax.devices.signals import NoInterrupts
from digits_jax.errors import UserError, check_choice, nearest
from digits_jax.models.describe import layers
from digits_jax.report import artifacts, figures
from digits_jax.search.study import FINISHED, Space, State, Study, database, inside, opened, usable
from digits_jax.training import train as loop
from digits_jax.training.predictor import Trained
from digits_jax.training.resolve import resolve

# isort: split
import filelock  # `study` says how to get what is missing
import optuna

KINDS = ("log", "uniform", "choice")
SAMPLERS = ("tpe", "random", "grid")
HYPER = ("optimizer.learning_rate", "optimizer.weight_decay", "model.dropout", "label_smoothing")
_COMPARISON = "comparison.md"  # as `compare_runs` writes it
_FIXED = ("seed", "resume", "report_test", "population", "search", "name", "data", "epochs")


def search(
    config: ConfigDict,
    workdir: str | os.PathLike | None = None,
    listen: Callable[[], NoInterrupts] = NoInterrupts,
) -> None:
    """Asks, trains and tells until `config.search.trials` are done; then reports, and retrains.

    Goes on where an earlier process, killed or finished, left the study; the first trial is the
    config as it stands. Writes trials.csv and search.png; with `search.retrain`, the best trial and
    the default are trained on as many fresh seeds into folders of their own and compared (on
    validation digits that the search chose by: the test split is the judge). Where nothing beat the
    default it is trained alone. Without a `workdir` all lies in runs/NAME-search, or apart from it
    as in `train`; listen: as there, while runs are retrained. Raises UserError for a space that
    makes no sense, a storage that cannot be used, and a teacher that would be deleted.
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
    auto = config.data.source == "auto"
    config.data, reason = dataset.find(config.data)
    workdir = _folder_of(config, workdir, auto and config.data.source == "drawn")
    _keep_teachers(config, workdir, space)
    if auto and config.data.source == "drawn":
        warn_drawn(reason)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from None
    dataset.load(config.data)  # digits that are not there are no trial's fault
    points: list[Any] = [(_default(config, space), {"default": True})]
    if config.search.sampler == "grid":
        points = [(point, {}) for point in _grid(space, config.search.trials)]
    with opened(
        config.search.storage or database(workdir),
        config.name,
        _asked(config),
        space,
        points,
        limit=len(points) if config.search.sampler == "grid" else config.search.trials,
        sampler=config.search.sampler,
        seed=config.seed,
        afresh=not config.resume,
    ) as study:
        with study.signs_of_life():
            while trials := study.ask(config.search.round):
                (workdir / _COMPARISON).unlink(missing_ok=True)  # the best may be another now
                _train(study, trials, config, space)
                _report(study, config, workdir, space)
        best = _report(study, config, workdir, space)
        done, elsewhere = len(study.trials(*FINISHED)), len(study.trials(State.RUNNING))
    if best:
        values = _values(best, config, space)
        found = f"best of {done} trials: number {best.number}, validation {percent(best.value)}"
        console.print(Text.assemble((found, "bold"), f"; {_text(values)}"))
        console.print(Text(f"trials.csv and search.png stand in {workdir}"))
    if elsewhere:
        console.print(f"{elsewhere} trials are under way in other processes, which report then.")
    elif best and config.search.retrain:
        won = {} if study.is_default(best) or _same(config, values) else values
        if not won:
            console.print(
                f"The default is the best of {done} trials: there is nothing to compare it with."
            )
        _retrain(config, workdir, won, best.number, listen)


def _folder_of(config: ConfigDict, workdir: str | os.PathLike | None, apart: bool) -> Path:
    """Without a `workdir`, the one of the study that is there, or of a new one."""
    if workdir is not None:
        return Path(workdir)
    own = Path("runs") / f"{config.name}-search"
    there = config.resume and (own / "study.db").exists()
    return settings.apart(own) if apart and not there else own


def _asked(config: ConfigDict) -> dict[str, Any]:
    """What all processes of a study must agree on."""
    asked = settings.as_dict(config)
    how = asked.pop("search")
    if config.distill.teacher:
        asked["inputs"] = {"distill.teacher": Trained(Path(config.distill.teacher)).digest()}
    return asked | {"searched": {k: how[k] for k in ("space", "epochs", "halving", "sampler")}}


def space_of(config: ConfigDict) -> Space:
    """The distributions of `config.search.space`, which mirrors the config: field -> distribution.

    A field's entry is ("log", low, high), ("uniform", low, high) or ("choice", one, other, ...).
    Raises UserError for an empty space, a field that the config has not, limits that make no sense,
    and values that no network can have.
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
            # Tuples are choices, too, of which a storage knows nothing: it gets their text.
            texts = [json.dumps(value) for value in values]
            space[field] = optuna.distributions.CategoricalDistribution(texts)
            for text in texts:
                _check_network(_changed(config, _decoded({field: text}, config)))
            continue
        if len(values) != 2 or not all(isinstance(x, int | float) for x in values):
            raise UserError(f"{where}: {kind} takes two numbers, not {values}")
        low, high = values
        if low > high:
            raise UserError(f"{where}: the lower end {low} lies above the upper one {high}")
        if kind == "log" and low <= 0:
            raise UserError(f"{where}: a logarithmic range must begin above 0, not at {low}")
        space[field] = optuna.distributions.FloatDistribution(low, high, log=kind == "log")
        for value in values:
            settings.check(_changed(config, {field: float(value)}))
    return space


def _keep_teachers(config: ConfigDict, workdir: Path, space: Space) -> None:
    """UserError where a teacher lies in a folder that `_retrain` would delete first."""
    if config.resume or not config.search.retrain:
        return
    field, name = "distill.teacher", rf"(default|trial-\d+)-{config.search.retrain}-seeds"
    offered = [json.loads(text) for text in space[field].choices] if field in space else []
    for teacher in filter(None, [config.distill.teacher, *offered]):
        path = Path(teacher).resolve()
        if path.parent == workdir.resolve() and re.fullmatch(name, path.name):
            raise UserError(
                f"config.{field}={teacher} lies where this search trains its best trial, and "
                "--config.resume=False would delete it; choose another --workdir"
            )


def _check_network(config: ConfigDict) -> None:
    settings.check(config)
    recipe = RECIPES[config.data.dataset]
    layers(models.from_config(config, recipe.heads), recipe.shape)
    population.program(config, batches.pipeline_of(config, recipe, n=1))


def _decoded(params: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
    """What a storage holds, as the config has it."""
    decoded = {}
    for field, value in params.items():
        if isinstance(value, str):
            value = json.loads(value)
            value = tuple(value) if isinstance(value, list) else value
        decoded[field] = value
    return decoded


def _changed(config: ConfigDict, values: Mapping[str, Any]) -> Any:
    changed = config.copy_and_resolve_references()
    try:
        changed.update_from_flattened_dict(dict(values))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.search.space: {' '.join(str(error).split())}") from None
    return changed


def _default(config: ConfigDict, space: Space) -> dict[str, Any]:
    """The config's own values, as far as they lie within the space."""
    flat = settings.flatten(config)
    own = {
        field: json.dumps(flat[field]) if hasattr(distribution, "choices") else float(flat[field])
        for field, distribution in space.items()
    }
    return {field: value for field, value in own.items() if inside(space[field], value)}


def _grid(space: Space, trials: int) -> list[dict[str, Any]]:
    """All combinations of the choices and of evenly spaced values: at most `trials` of them."""
    axes = {field: list(d.choices) for field, d in space.items() if hasattr(d, "choices")}
    ranges = {field: d for field, d in space.items() if field not in axes}
    choices = math.prod(map(len, axes.values()))
    points = 1
    while choices * (points + 1) ** len(ranges) <= trials and ranges:
        points += 1
    if choices > trials or (ranges and points < 2):
        least = choices * 2 ** len(ranges)
        raise UserError(f"config.search.trials={trials}: the smallest grid has {least} points")
    for field, d in ranges.items():
        spaced = np.geomspace if d.log else np.linspace
        axes[field] = np.clip(spaced(d.low, d.high, points), d.low, d.high).tolist()
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _values(trial: Any, config: ConfigDict, space: Space) -> dict[str, Any]:
    """field -> value of a trial; those that the default has outside of the space included."""
    flat = settings.flatten(config)
    decoded = _decoded(trial.params, config)
    return {field: decoded.get(field, flat[field]) for field in space}


def _train(study: Study, trials: list[optuna.Trial], config: ConfigDict, space: Space) -> None:
    """Trains a round, group by group, and tells how it went."""
    groups: dict[str, list[tuple[optuna.Trial, Any]]] = {}
    for trial in trials:
        changed = _changed(config, _decoded(trial.params, config))
        changed.epochs = config.search.epochs or config.epochs
        fixed = {f: v for f, v in settings.flatten(changed).items() if f not in HYPER}
        groups.setdefault(json.dumps(fixed), []).append((trial, changed))
    for group in groups.values():
        numbers = ", ".join(str(trial.number) for trial, _ in group)
        console.print(f"trials {numbers}", style="bold")
        for trial, _ in group:
            console.print(Text(f"  {trial.number:>4}  {_text(_values(trial, config, space))}"))
        try:
            _train_group(study, group, config.search.halving)
        except (UserError, jax.errors.JaxRuntimeError) as error:  # no such network, no memory
            warn(f"trials {numbers} could not be trained: {str(error).splitlines()[0]}")
            for trial, _ in group:
                study.spoil(trial)


def _train_group(study: Study, group: list[tuple[optuna.Trial, Any]], halving: int) -> None:
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
    run, clock = loop.build(resolve(config), members), loop.Clock()
    going = {member: trial for member, (trial, _) in enumerate(group)}
    for epoch in range(1, config.epochs + 1):
        for row in loop.epoch(run, epoch, clock):
            member, trial = row["member"], going[row["member"]]
            study.report(trial, row["validation_accuracy"], epoch)
        for member in run.diverged.keys() & going.keys():
            study.tell(going.pop(member), state=State.PRUNED)
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


def _report(study: Study, config: ConfigDict, workdir: Path, space: Space) -> Any:
    """Writes trials.csv and search.png of the trials that are done; -> the best, or None."""
    done = study.trials(*FINISHED)
    complete = [trial for trial in done if trial.state == State.COMPLETE]
    if not complete:
        return None
    points = [
        {"trial": t.number, "value": t.value, "pruned": t.state == State.PRUNED}
        | _values(t, config, space)
        for t in done
    ]
    with files.replacing(workdir / "trials.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("trial", "state", "epochs", "validation", *space))
        for trial in done:
            values = _values(trial, config, space).values()
            row = (trial.number, trial.state.name.lower(), trial.last_step or 0, trial.value)
            writer.writerow((*row, *values))
    logs = {field for field, d in space.items() if getattr(d, "log", False)}
    note = artifacts.drawn(config.data.source)
    figures.search(points, list(space), logs, study.importances(), workdir / "search.png", note)
    return max(complete, key=lambda trial: (trial.value, -trial.number))


def _retrain(
    config: ConfigDict,
    workdir: Path,
    values: Mapping[str, Any],
    number: int,
    listen: Callable[[], NoInterrupts],
) -> None:
    """The default on fresh seeds and, if it has `values` of its own, the best trial beside it."""
    seeds = config.search.retrain
    default, best = (workdir / f"{name}-{seeds}-seeds" for name in ("default", f"trial-{number}"))
    runs: dict[Path, Mapping[str, Any]] = {default: {}} | ({best: values} if values else {})
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


def _same(config: ConfigDict, values: Mapping[str, Any]) -> bool:
    """Do `values` leave the config as it is? To float32, in which a point of a grid may be it."""
    return all(
        isinstance(old, float) and math.isclose(old, new, rel_tol=1e-6)
        for _, old, new in settings.changes(config, _changed(config, values))
    )


def _text(values: Mapping[str, Any]) -> str:
    def short(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{field} {short(value)}" for field, value in values.items())

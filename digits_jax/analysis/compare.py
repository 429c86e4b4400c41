"""Runs side by side: configs trained one after the other, or two workdirs put to the test."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.text import Text

from digits_jax import files, models, settings
from digits_jax.console import console, warn_drawn
from digits_jax.data import dataset
from digits_jax.data.recipes import RECIPES
from digits_jax.devices.signals import NoInterrupts
from digits_jax.errors import UserError, check_choice
from digits_jax.models.describe import layers
from digits_jax.report import artifacts, figures, stats, tables
from digits_jax.training.predictor import FILE, Trained
from digits_jax.training.train import train

_SIGMAS = 2  # standard errors
_SPLITS = ("validation", "test")
_INPUTS = ("distill.teacher", "prune.run")  # fields that name the folder of a run to read


def compare(
    configs: Sequence[Any],
    workdir: str | os.PathLike | None,
    name: str,
    listen: Callable[[], NoInterrupts] = NoInterrupts,
) -> None:
    """Trains each of `configs` into a folder of its own below `workdir`, a finished one excepted.

    Without a `workdir` they are those of `train`. All have the same digits; listen: as in `train`.
    Then writes NAME-ablation.md and .png there, a row per config in the order given: parameters,
    accuracies, what changed since the row above, and how it fits. Raises UserError, before anything
    is trained, for a config that cannot be, that has no validation, or that learns from a run which
    is about to be started over.
    """
    configs = [config.copy_and_resolve_references() for config in configs]
    for config in configs:
        settings.check(config)
        check_choice("data.dataset", config.data.dataset, RECIPES)
        recipe = RECIPES[config.data.dataset]
        layers(models.from_config(config, recipe.heads), recipe.shape)
        if not config.data.validation:
            raise UserError(f"{config.name}: without data.validation it cannot be compared")
    folders = _folders(configs, workdir)
    workdir = Path("runs" if workdir is None else workdir)
    _keep_inputs(configs, folders)
    summaries = {}
    for config, folder in zip(configs, folders, strict=True):
        train(config, folder, listen)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        note = artifacts.drawn(summary["data"].get("source"))
        summaries[config.name + (f" ({note})" if note else "")] = summary
    rows = ablation(summaries)
    table = markdown(rows)
    files.write_text(workdir / f"{name}-ablation.md", table)
    figures.ablation(rows, workdir / f"{name}-ablation.png")
    console.print(Text(f"\n{table}\n{name}-ablation.md and .png stand in {workdir}"))


def command(
    config: ConfigDict | None,
    workdir: str | os.PathLike | None,
    listen: Callable[[], NoInterrupts],
    *,
    variants: Sequence[str],
    runs: Sequence[str],
    flag: flags.Flag,
) -> None:
    """--mode=compare: `compare` of the config's `variants`, or `compare_runs` of two `runs`.

    flag: --config, parsed to `config`. Its overrides hold for every variant; with `runs` they only
    say where the digits are. Raises UserError for flags that do not go together.
    """
    given = config_flags.get_override_values(flag) if config else {}
    if runs:
        if len(runs) != 2:
            raise UserError("--runs names two folders, for example --runs=runs/mnist,results/mnist")
        if variants or given.keys() - {"data.raw_dir", "data.cache_dir"}:
            raise UserError(
                "--runs goes without --variants, and of --config with data.raw_dir and "
                "data.cache_dir alone: its runs are finished"
            )
        places = config and {name: config.data[name] for name in ("raw_dir", "cache_dir")}
        first, second = runs
        compare_runs(first, second, workdir, places)
        return
    if not variants:
        raise UserError("--mode=compare needs --variants, for example --variants=phase1,phase2")
    path = config_flags.get_config_filename(flag).partition(":")[0]
    configs = list[ConfigDict]()
    for name in variants:
        configs.append(flag.parser.parse(f"{path}:{name}") or ConfigDict())
        try:
            configs[-1].update_from_flattened_dict(given)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"--variants={name}: {' '.join(str(error).split())}") from None
    compare(configs, workdir, Path(path).stem, listen)


def _folders(configs: Sequence[Any], workdir: str | os.PathLike | None) -> list[Path]:
    """Where each is trained; decides for all of them which digits 'auto' comes to.

    Those of the runs that are there, else MNIST where it can be had.
    """
    folders = [Path("runs" if workdir is None else workdir) / config.name for config in configs]
    asking = [config for config in configs if config.data.source == "auto"]
    if not asking:
        return folders
    known = [
        recorded["data"]["source"]
        for config, folder in zip(configs, folders, strict=True)
        if config.resume and (recorded := settings.read(folder))
    ]
    source, reason = known[0] if known else "", ""
    if not known:
        found, reason = dataset.find(asking[0].data)
        source = found.source
    for config in asking:
        config.data.source = source
    if source == "drawn" and not known:
        warn_drawn(reason)
        if workdir is None:
            folders = [settings.apart(folder) for folder in folders]
    return folders


def _keep_inputs(configs: Sequence[Any], folders: Sequence[Path]) -> None:
    """UserError where a config reads a run that one of them would delete."""
    both = zip(configs, folders, strict=True)
    deleted = {folder.resolve(): config.name for config, folder in both if not config.resume}
    for config in configs:
        for field in _INPUTS:
            run = settings.flatten(config)[field]
            if run and (owner := deleted.get(Path(run).resolve())):
                raise UserError(
                    f"{config.name}: config.{field}={run} is the folder of {owner}, which "
                    "--config.resume=False would delete; leave that flag out, or choose another "
                    "--workdir"
                )


def ablation(summaries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each {run: summary}: run, parameters, train, validation, test (None where it was
    not read), error (standard error of validation), changed and reading (texts).
    """
    rows: list[dict[str, Any]] = []
    best = max(summaries.values(), key=lambda summary: summary["validation"]["accuracy"])
    for run, summary in summaries.items():
        row = {
            "run": run,
            "parameters": summary["model"]["parameters"],
            "train": summary["train"]["accuracy"],
            "validation": summary["validation"]["accuracy"],
            "test": summary.get("mean"),
            "error": _error(summary, "validation"),
        }
        fit = reading(summary, best)
        if rows:
            before = summaries[rows[-1]["run"]]
            row["changed"] = "; ".join(_changes(before["config"], summary["config"])) or "nothing"
            row["reading"] = f"{fit}; {_progress(rows[-1], row)}"
        else:
            row.update(changed="the first", reading=fit)
        rows.append(row)
    return rows


def reading(summary: dict[str, Any], best: dict[str, Any]) -> str:
    """Does it over- or underfit?

    It underfits where it reads its own training examples worse than the best of the compared runs
    reads validation (as their maximum a little flattered), and overfits where it reads them better
    than validation, either by more than two standard errors of the difference.
    """
    train, validation = summary["train"]["accuracy"], summary["validation"]["accuracy"]
    possible = best["validation"]["accuracy"]
    noise = _noise(_error(summary, "train"), _error(summary, "validation"))
    gap = f"gap {100 * (train - validation):+.2f} ± {100 * noise:.2f}"
    if possible - train > _noise(_error(summary, "train"), _error(best, "validation")):
        return f"underfits: {100 * train:.2f} on training, {100 * possible:.2f} is possible; {gap}"
    return f"overfits: {gap}" if train - validation > noise else f"fits: {gap}"


def _error(summary: dict[str, Any], split: str) -> float:
    """The standard error of an accuracy over n examples, which are the same for every member."""
    p, n = summary[split]["accuracy"], summary["data"][split]
    return math.sqrt(max(p * (1 - p), 1 / n) / n)


def _noise(one: float, other: float) -> float:
    """What a difference of two accuracies must exceed to be called one.

    As if of independent examples: of the same ones, even smaller differences may be real.
    """
    return _SIGMAS * math.hypot(one, other)


def _progress(before: dict[str, Any], now: dict[str, Any]) -> str:
    change = now["validation"] - before["validation"]
    noise = _noise(before["error"], now["error"])
    size = f"validation {100 * change:+.2f} ± {100 * noise:.2f}"
    if abs(change) <= noise:
        return f"{size}, within the noise"
    return f"{size}, {'better' if change > 0 else 'worse'} than {before['run']}"


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    texts = []
    for field, old, new in settings.changes(before, now):
        if field == "model.layers":
            while old and new and old[0] == new[0]:
                old, new = old[1:], new[1:]
            while old and new and old[-1] == new[-1]:
                old, new = old[:-1], new[:-1]
            old, new = (", ".join(map(str, part)) or "nothing" for part in (old, new))
        if field != "name":
            texts.append(f"{field}: {old} → {new}")
    return texts


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `ablation` as a table."""
    splits, texts = ("train", "validation", "test"), ("changed", "reading")
    return (
        tables.markdown(
            ["run", "parameters", *splits, "what changed", "reading"],
            [
                [row["run"], f"{row['parameters']:,}"]
                + [tables.percent(row[split]) for split in splits]
                + [row[text] for text in texts]
                for row in rows
            ],
            [tables.LEFT, *[tables.RIGHT] * 4, tables.LEFT, tables.LEFT],
        )
        + "\n"
    )


def compare_runs(
    first: str | os.PathLike,
    second: str | os.PathLike,
    workdir: str | os.PathLike | None = None,
    places: Mapping[str, str] | None = None,
) -> str:
    """Is `second` better than `first`? Two finished runs; -> a few lines of text.

    On each split, validation and test, whose examples are the same for both: over the seeds that
    both have, the mean of the paired differences with its 95 % interval; over the examples, where
    both workdirs hold their model and the digits can be had, McNemar's test of their (averaged)
    predictions. A line says what is left out, and why. Written to `workdir/comparison.md`, if
    given.

    places: `raw_dir` and `cache_dir` of the digits, as in `config.data`; without, where the runs
    had them or the user's own cache. Raises UserError where there is nothing to compare.
    """
    paths = Path(first), Path(second)
    runs = [_finished(path) for path in paths]
    seeds = [{member["seed"]: member for member in run["members"]} for run in runs]
    shared = sorted(seeds[0].keys() & seeds[1].keys())
    folds = any(run["config"]["data"].get("folds") for run in runs)
    lines, splits, left_out = list[str](), list[str](), dict[str, str]()
    for split in _SPLITS:
        read = [all(m.get(split) is not None for m in run["members"]) for run in runs]
        if difference := _difference(split, runs):
            left_out[split] = f"the runs differ in {difference}"
        elif split == "validation" and folds:
            left_out[split] = "each of the folds has its own"
        elif all(read):
            splits.append(split)
            if shared and not folds:
                pairs = [[members[seed][split] for members in seeds] for seed in shared]
                lines.append(f"{split}: {_paired(pairs)}")
        elif any(read):
            left_out[split] = f"{paths[read.index(False)]} has not read it"
    if folds:
        left_out["seeds"] = "folds share digits, an interval would be too narrow"
    elif not shared:
        left_out["seeds"] = "the runs share none"
    try:
        lines += _over_examples(paths, runs, splits, places) if splits else []
    except UserError as error:
        left_out["examples"] = str(error)
    if not lines:
        why = "; ".join(f"{what}: {why}" for what, why in left_out.items())
        raise UserError(f"{first} and {second}: nothing can be compared; {why or 'they read none'}")
    lines += [f"{what}: not compared, {why}" for what, why in left_out.items()]
    items = "".join(f"- {line}\n" for line in lines)
    text = f"# {paths[1]} against {paths[0]}\n\n{items}"
    console.print(Text(text))
    if workdir is not None:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        files.write_text(Path(workdir) / "comparison.md", text)
    return text


def _difference(split: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Why `split` has other examples in one run than in the other, 'data.seed (0 and 1)'; or ''."""
    one, other = (made_of(split, run["config"]["data"]) for run in runs)
    for field, value in one.items():
        if value != other.get(field):
            return f"data.{field} ({value} and {other.get(field)})"
    return ""


def made_of(split: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which examples 'validation' or 'test' are, and no more: {field of data: value}.

    As `dataset.load` makes them from `data`, the `config.data` of a finished run: 0 for as many as
    there are is that number, and what does not matter is not there. Two runs of which these are
    equal were read on the same examples.
    """
    recipe, test = RECIPES[data["dataset"]], split == "test"
    source = (test and data.get("test_source")) or data["source"]
    made = {"dataset": data["dataset"], "test_source" if test else "source": source}
    pairs, drawn = recipe.digits > 1, source != "mnist"
    if drawn:
        size = "drawn_test" if test else "drawn_train"
        made[size] = data[size]
    if drawn or pairs or not test:
        made["seed"] = data["seed"]
    if test:
        there = recipe.test if pairs else made.get("drawn_test", recipe.test)
        asked = data["test"] or there
        made["test"] = asked if pairs else min(asked, there)
        return made
    made["folds"] = data.get("folds") or 0
    made["validation"] = data["validation"]
    if pairs:  # as many more as there are training examples
        made["train"] = data["train"] or recipe.train
    return made


def _finished(workdir: Path) -> dict[str, Any]:
    try:
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        pruned = summary["config"].get("prune", {}).get("run")
        [member["seed"] for member in summary["members"]]
        [made_of(split, summary["config"]["data"]) for split in _SPLITS]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{workdir} holds no finished run: no summary.json of one") from None
    if pruned:
        raise UserError(f"{workdir}: its members are pruned differently, and no seeds")
    return summary


def _paired(pairs: Sequence[Sequence[float]]) -> str:
    """'98.20 -> 98.50, +0.30 ± 0.12 over 5 seeds': the 95 % interval of the mean difference."""
    before, after = np.mean(pairs, axis=0)
    differences = [two - one for one, two in pairs]
    change, half = float(np.mean(differences)), stats.half_width(differences)
    text = f"{tables.percent(before)} → {tables.percent(after)} %, {100 * change:+.2f}"
    if half is None:
        return f"{text} of the one seed that both have, so no interval"
    verdict = "within the noise"
    if abs(change) > half:
        verdict = "better" if change > 0 else "worse"
    return f"{text} ± {100 * half:.2f} points (95 % interval, {len(pairs)} paired seeds): {verdict}"


def _over_examples(
    paths: Sequence[Path],
    runs: Sequence[Mapping[str, Any]],
    splits: Sequence[str],
    places: Mapping[str, str] | None,
) -> list[str]:
    """McNemar's test on `splits`, head by head; UserError where models or digits are missing."""
    for path in paths:
        if not (path / FILE).exists():
            raise UserError(f"{path} holds no {FILE}; `command` in its summary.json makes it anew")
    recorded = [run["config"]["data"] for run in runs]
    where = places or {name: _here(name, recorded) for name in ("raw_dir", "cache_dir")}
    models_of = [Trained(path) for path in paths]
    try:
        data = dataset.load(_reading(models_of[0].config.data.to_dict() | where, splits))
    except UserError as error:
        if places and places["raw_dir"]:
            raise
        raise UserError(
            "MNIST is not at hand; connect to the internet once, or add --config=configs/mnist.py "
            "--config.data.raw_dir=DIR, a folder with its four files"
        ) from error
    lines = []
    for name in splits:
        images, labels = dataset.examples(getattr(data, name), data.recipe)
        said = [artifacts.mean_probabilities(model.predict(images)) for model in models_of]
        for head, truth in labels.items():
            one, two = (p[head].argmax(-1) == truth for p in said)
            test = stats.mcnemar(one, two)
            lines.append(
                f"{name}, {head}, over {len(truth):,} examples: only the first is right on "
                f"{test.first}, only the second on {test.second}; McNemar's p = {test.p:.3g}"
            )
    return lines


def _reading(data: Mapping[str, Any], splits: Sequence[str]) -> ConfigDict:
    """`data` of a run, so that `dataset.load` makes `splits` as it had them, and little else."""
    less: dict[str, Any] = {"normalize": "unit", "drawn_extra": 0}
    if "test" not in splits:
        less |= {"test_source": "", "drawn_test": 1}
    if "validation" not in splits:
        source = data.get("test_source") or data["source"]
        less |= {"source": source, "test_source": "", "drawn_train": 1}
        less |= {"validation": 0.0, "folds": 0}
    return ConfigDict(dict(data) | less)


def _here(name: str, recorded: Sequence[Mapping[str, Any]]) -> str:
    """Where a run kept its digits, if this machine has such a folder."""
    known = (data.get(name) or "" for data in recorded)
    return next((place for place in known if os.path.isdir(os.path.expanduser(place))), "")

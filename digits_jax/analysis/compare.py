"""Comparisons: of configs that are trained one after another, or of two finished runs."""

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

from digits_jax import files, settings
from digits_jax.analysis.describe import layers_of
from digits_jax.analysis.runs import SUMMARY, Summary, read_summary
from digits_jax.console import console, status, warn_drawn
from digits_jax.data import dataset
from digits_jax.data.recipes import recipe_of
from digits_jax.devices.signals import NoInterrupts
from digits_jax.errors import UserError
from digits_jax.report import artifacts, figures, stats, tables
from digits_jax.training.predictor import FILE, Predictor
from digits_jax.training.train import train

_SPLITS = ("validation", "test")
_INPUTS = ("distill.teacher", "prune.run")  # fields that name the folder of a run to read


def compare(
    configs: Sequence[ConfigDict],
    workdir: str | os.PathLike | None,
    name: str,
    listen: Callable[[], NoInterrupts] = NoInterrupts,
) -> None:
    """Trains `configs` on the same digits, each in its own folder in `workdir`, and compares them.

    Without a `workdir` in the folders that `train` would choose; listen: as in `train`. Writes
    NAME-ablation.md and .png, a row per config as in `ablation`. Raises UserError, before any
    training, for a wrong config, one without validation, and one that reads a run to be deleted.
    """
    configs = [config.copy_and_resolve_references() for config in configs]
    for config in configs:
        settings.check(config)
        layers_of(config)
        if not config.data.validation:
            raise UserError(f"{config.name}: without data.validation it cannot be compared")
    folders = _folders(configs, workdir)
    _keep_inputs(configs, folders)
    summaries = {}
    for config, folder in zip(configs, folders, strict=True):
        train(config, folder, listen)
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        note = artifacts.source_note(summary["data"].get("source"))
        summaries[config.name + (f" ({note})" if note else "")] = summary
    rows = ablation(summaries)
    table = markdown(rows)
    workdir = Path(workdir or "runs")
    status("drawing the picture", brief=True)
    files.write_text(workdir / f"{name}-ablation.md", table)
    figures.ablation(rows, workdir / f"{name}-ablation.png")
    console.print(Text(f"\n{table}\n{name}-ablation.md and .png are in {workdir}"))


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


def _folders(configs: Sequence[ConfigDict], workdir: str | os.PathLike | None) -> list[Path]:
    """The folder of each config; replaces data.source=auto by one source for all.

    It is that of the runs that exist already, else MNIST where it is available.
    """

    def folder_of(config: ConfigDict) -> Path:
        return Path(workdir) / config.name if workdir else settings.folder_of(config)

    folders = [*map(folder_of, configs)]
    unresolved = [config for config in configs if config.data.source == "auto"]
    if not unresolved:
        return folders
    pairs = zip(configs, folders, strict=True)
    known = [found for c, folder in pairs if c.resume and (found := settings.read(folder))]
    if known:
        source = known[0]["data"]["source"]
    else:
        found, reason = dataset.find(unresolved[0].data)
        source = found.source
        for config in unresolved:
            if config.data.test_source == "auto":
                config.data.test_source = found.test_source or "auto"
        if source == "drawn":
            warn_drawn(reason)
    for config in unresolved:
        config.data.source = source
    return folders if known else [*map(folder_of, configs)]


def _keep_inputs(configs: Sequence[ConfigDict], folders: Sequence[Path]) -> None:
    """UserError where a config reads a run that one of the configs would delete."""
    pairs = zip(configs, folders, strict=True)
    deleted = {folder.resolve(): config.name for config, folder in pairs if not config.resume}
    for config in configs:
        for field in _INPUTS:
            run = settings.flatten(config)[field]
            if run and (owner := deleted.get(Path(run).resolve())):
                raise UserError(
                    f"{config.name}: config.{field}={run} is the folder of {owner}, which "
                    "--config.resume=False would delete; leave that flag out, or choose another "
                    "--workdir"
                )


def ablation(summaries: Mapping[str, Summary]) -> list[artifacts.Row]:
    """A row for each {run: summary}.

    Keys: run, parameters, train, validation, test (accuracies; test None where it was not read),
    error (standard error of validation), changed and reading (texts).
    """
    rows: list[artifacts.Row] = []
    best = max(summaries.values(), key=lambda summary: summary["validation"]["accuracy"])
    for run, summary in summaries.items():
        error = _error(summary, "validation")
        row = {
            "run": run,
            "parameters": summary["model"]["parameters"],
            "train": summary["train"]["accuracy"],
            "validation": summary["validation"]["accuracy"],
            "test": summary.get("mean"),
            "error": error,
            "changed": "the first",
            "reading": fit(summary, best),
        }
        if rows:
            above = rows[-1]
            changes = _changes(summaries[above["run"]]["config"], summary["config"])
            row["changed"] = "; ".join(changes) or "nothing"
            change, noise = row["validation"] - above["validation"], _noise(above["error"], error)
            verdict = _verdict(change, noise)
            than = "" if verdict == "within the noise" else f" than {above['run']}"
            row["reading"] += f"; validation {_points(change, noise)}, {verdict}{than}"
        rows.append(row)
    return rows


def fit(summary: Summary, best: Summary) -> str:
    """Whether a run overfits, underfits or fits, and its generalisation gap.

    It underfits where its training accuracy is below the best run's validation accuracy (a maximum,
    so slightly optimistic), and overfits where it is above its own validation accuracy; either by
    more than two standard errors of the difference.
    """
    train, validation = summary["train"]["accuracy"], summary["validation"]["accuracy"]
    possible = best["validation"]["accuracy"]
    noise = _noise(_error(summary, "train"), _error(summary, "validation"))
    gap = f"gap {_points(train - validation, noise)}"
    if possible - train > _noise(_error(summary, "train"), _error(best, "validation")):
        return f"underfits: {100 * train:.2f} on training, {100 * possible:.2f} is possible; {gap}"
    return f"overfits: {gap}" if train - validation > noise else f"fits: {gap}"


def _error(summary: Summary, split: str) -> float:
    """The standard error of an accuracy over n examples, which all members share."""
    p, n = summary[split]["accuracy"], summary["data"][split]
    return math.sqrt(max(p * (1 - p), 1 / n) / n)


def _noise(error: float, other: float) -> float:
    """Two standard errors of a difference of accuracies: too wide if the examples are the same."""
    return 2 * math.hypot(error, other)


def _points(change: float, noise: float) -> str:
    """In percentage points: '+0.84 ± 0.83'."""
    return f"{100 * change:+.2f} ± {100 * noise:.2f}"


def _verdict(change: float, noise: float) -> str:
    if abs(change) <= noise:
        return "within the noise"
    return "better" if change > 0 else "worse"


def _changes(before: Summary, now: Summary) -> list[str]:
    """'field: old → new' of two recorded configs; of model.layers, only the layers that differ."""
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


def markdown(rows: Sequence[artifacts.Row]) -> str:
    """The rows of `ablation` as a table."""
    splits, texts = ("train", "validation", "test"), ("changed", "reading")
    cells = [
        [row["run"], f"{row['parameters']:,}"]
        + [tables.percent(row[split]) for split in splits]
        + [row[text] for text in texts]
        for row in rows
    ]
    header = ["run", "parameters", *splits, "what changed", "reading"]
    align = [tables.LEFT, *[tables.RIGHT] * 4, tables.LEFT, tables.LEFT]
    return tables.markdown(header, cells, align) + "\n"


def compare_runs(
    first: str | os.PathLike,
    second: str | os.PathLike,
    workdir: str | os.PathLike | None = None,
    places: Mapping[str, str] | None = None,
) -> str:
    """Whether the run `second` is better than `first`, as a text; also in workdir/comparison.md.

    For each split with the same examples in both: the mean difference over their common seeds with
    its 95 % interval, and, where both folders hold a model.npz and the digits are available,
    McNemar's test of their (averaged) predictions. The text names what is left out and why.

    places: `raw_dir` and `cache_dir` of the digits, as in `config.data`; by default those of the
    runs, where they exist. Raises UserError where nothing can be compared.
    """
    paths = Path(first), Path(second)
    runs = [_finished(path) for path in paths]
    seeds = [{member["seed"]: member for member in run["members"]} for run in runs]
    shared = sorted(seeds[0].keys() & seeds[1].keys())
    folds = any(run["config"]["data"].get("folds") for run in runs)
    lines, splits, left_out = list[str](), list[str](), dict[str, str]()
    for split in _SPLITS:
        evaluated = [all(m.get(split) is not None for m in run["members"]) for run in runs]
        if difference := _difference(split, runs):
            left_out[split] = f"the runs differ in {difference}"
        elif split == "validation" and folds:
            left_out[split] = "each of the folds has its own"
        elif all(evaluated):
            splits.append(split)
            if shared and not folds:
                pairs = [[members[seed][split] for members in seeds] for seed in shared]
                lines.append(f"{split}: {_paired(pairs)}")
        elif any(evaluated):
            left_out[split] = f"{paths[evaluated.index(False)]} has not read it"
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


def _difference(split: str, runs: Sequence[Summary]) -> str:
    """The field by which examples of `split` differ between runs, 'data.seed (0 and 1)'; or ''."""
    first, second = (made_of(split, run["config"]["data"]) for run in runs)
    for field, value in first.items():
        if value != second.get(field):
            return f"data.{field} ({value} and {second.get(field)})"
    return ""


def made_of(split: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """{field: value} of `config.data` that decide which examples 'validation' or 'test' holds.

    Two runs have the same examples in a split if and only if these are equal: fields without
    influence are left out, and a size of 0, which means all examples, becomes their number.
    """
    recipe, test = recipe_of(data), split == "test"
    source = (test and data.get("test_source")) or data["source"]
    made = {"dataset": data["dataset"], "test_source" if test else "source": source}
    pairs, drawn = recipe.digits > 1, source == "drawn"
    if drawn:
        size = "drawn_test" if test else "drawn_train"
        made |= {name: data[name] for name in (size, "drawn_distortion")}
    if source != "mnist" or pairs or not test:
        made["seed"] = data["seed"]
    if test:
        known = recipe.test if pairs or source == "mnist" else made.get("drawn_test", 0)
        tested = data["test"] or known  # 0: all of another set, however many
        made["test"] = tested if pairs or not known else min(tested, known)
        return made
    made["folds"] = data.get("folds") or 0
    made["validation"] = data["validation"]
    if pairs:  # the number of validation pairs is a fraction of the training pairs
        made["train"] = data["train"] or recipe.train
    return made


def _finished(workdir: Path) -> Summary:
    try:
        summary = read_summary(workdir / SUMMARY)
        pruned = summary["config"].get("prune", {}).get("run")
        [member["seed"] for member in summary["members"]]
        [made_of(split, summary["config"]["data"]) for split in _SPLITS]
    except (OSError, KeyError, TypeError, AttributeError):
        raise UserError(f"{workdir} holds no finished run: no summary.json of one") from None
    if pruned:
        raise UserError(f"{workdir}: its members are pruned differently, they are no seeds")
    return summary


def _paired(pairs: Sequence[Sequence[float]]) -> str:
    """The mean difference over [[first, second], ...], with its 95 % interval, as text."""
    before, after = np.mean(pairs, axis=0)
    differences = [second - first for first, second in pairs]
    change, half = float(np.mean(differences)), stats.half_width(differences)
    text = f"{tables.percent(before)} → {tables.percent(after)} %, "
    if half is None:
        return f"{text}{100 * change:+.2f} of the one seed that both have, so no interval"
    if len(pairs) == 2:
        both = " and ".join(f"{100 * difference:+.2f}" for difference in differences)
        return f"{text}{both} points of the two seeds that both have, so no interval"
    return (
        f"{text}{_points(change, half)} points (95 % interval, {len(pairs)} paired seeds): "
        f"{_verdict(change, half)}"
    )


def _over_examples(
    paths: Sequence[Path],
    runs: Sequence[Summary],
    splits: Sequence[str],
    places: Mapping[str, str] | None,
) -> list[str]:
    """McNemar's test on `splits`, head by head; UserError where models or digits are missing."""
    for path in paths:
        if not (path / FILE).exists():
            raise UserError(f"{path} holds no {FILE}; `command` in its summary.json makes it anew")
    recorded = [run["config"]["data"] for run in runs]
    folders = places or {name: _existing(name, recorded) for name in ("raw_dir", "cache_dir")}
    models = [Predictor(path) for path in paths]
    status("reading the digits", brief=True)
    try:
        data = dataset.load(_only(splits, models[0].config.data.to_dict() | folders))
    except UserError as error:
        if places and places["raw_dir"]:
            raise
        raise UserError(
            "MNIST is not at hand; connect to the internet once, or add --config=configs/mnist.py "
            "--config.data.raw_dir=DIR, a folder with its four files"
        ) from error
    lines = []
    for name in splits:
        status(f"reading the {name} examples with both runs")
        images, labels = dataset.examples(getattr(data, name), data.recipe)
        probabilities = [artifacts.mean_probabilities(model.predict(images)) for model in models]
        for head, truth in labels.items():
            test = stats.mcnemar(*(p[head].argmax(-1) == truth for p in probabilities))
            lines.append(
                f"{name}, {head}, over {len(truth):,} examples: only the first is right on "
                f"{test.first}, only the second on {test.second}; McNemar's p = {test.p:.3g}"
            )
    return lines


def _only(splits: Sequence[str], data: Mapping[str, Any]) -> ConfigDict:
    """A run's `data`, changed so that `dataset.load` prepares `splits` and little else."""
    changes: dict[str, Any] = {"normalize": "unit", "drawn_extra": 0}
    if "test" not in splits:
        changes |= {"test_source": "", "drawn_test": 1}
    if "validation" not in splits:
        changes |= {"source": data.get("test_source") or data["source"], "test_source": ""}
        changes |= {"drawn_train": 1, "validation": 0.0, "folds": 0}
    return ConfigDict(dict(data) | changes)


def _existing(name: str, recorded: Sequence[Mapping[str, str]]) -> str:
    """The first folder `data[name]` of the runs that exists on this machine, or ''."""
    known = (data.get(name) or "" for data in recorded)
    return next((folder for folder in known if os.path.isdir(os.path.expanduser(folder))), "")

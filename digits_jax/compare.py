"""Runs side by side: configs trained one after the other, or two workdirs put to the test."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.text import Text

from digits_jax import devices, figures, models, report, settings, stats
from digits_jax.console import console
from digits_jax.data import batches
from digits_jax.data.pairs import RECIPES
from digits_jax.describe import layers
from digits_jax.errors import UserError, check_choice
from digits_jax.train import train
from digits_jax.trained import FILE, Trained

_SIGMAS = 2  # standard errors


def compare(configs: Sequence[Any], workdir: Path, name: str) -> None:
    """Trains each of `configs` into a folder of its own below `workdir`, a finished one excepted.

    Then writes NAME-ablation.md and .png there, a row per config in the order given: parameters,
    accuracies, what changed since the row above, and how it fits. Raises UserError, before anything
    is trained, for a config that cannot be, or that has no validation.
    """
    for config in configs:
        settings.check(config)
        check_choice("data.dataset", config.data.dataset, RECIPES)
        recipe = RECIPES[config.data.dataset]
        layers(models.from_config(config, recipe.heads), recipe.shape)
        if not config.data.validation:
            raise UserError(f"{config.name}: without data.validation it cannot be compared")
    summaries = {}
    for config in configs:
        folder = workdir / config.name
        train(config, folder)
        summaries[config.name] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows = ablation(summaries)
    table = markdown(rows)
    report.write_text(workdir / f"{name}-ablation.md", table)
    figures.ablation(rows, workdir / f"{name}-ablation.png")
    console.print(f"\n{table}\n{name}-ablation.md and .png stand in {workdir}")


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
    lines = ["| run | parameters | train | validation | test | what changed | reading |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | --- | --- |")
    for row in rows:
        train, validation, test = (
            report.percent(row[split]) for split in ("train", "validation", "test")
        )
        lines.append(
            f"| {row['run']} | {row['parameters']:,} | {train} | {validation} | {test} "
            f"| {row['changed']} | {row['reading']} |"
        )
    return "\n".join(lines) + "\n"


def compare_runs(first: Path, second: Path, workdir: Path | None = None) -> str:
    """Is `second` better than `first`? Two finished runs of the same data; -> a few lines of text.

    Over the seeds that both have: the mean of the paired differences with its 95 % interval, on
    validation and, where both have read it, on the test split. Over the examples, where both
    workdirs hold their model: McNemar's test of their (averaged) predictions. Written to
    `workdir/comparison.md`, if given. Raises UserError where there is nothing to compare.
    """
    runs = [_finished(path) for path in (first, second)]
    data = [run["config"]["data"] for run in runs]
    fields = ["dataset", "source", "test_source", "seed", "validation", "folds", "train", "test"]
    if "drawn" in (data[0].get("source"), data[0].get("test_source")):
        fields += ["drawn_train", "drawn_test"]
    for field in fields:
        values = [d.get(field) or 0 for d in data]
        if values[0] != values[1]:
            raise UserError(
                f"{first} and {second} differ in data.{field} ({values[0]}, {values[1]}); what "
                "they read of other examples cannot be compared"
            )
    if data[0].get("folds"):
        raise UserError("folds share their digits: a t-interval over them would be too narrow")
    seeds = [{member["seed"]: member for member in run["members"]} for run in runs]
    shared = sorted(seeds[0].keys() & seeds[1].keys())
    lines = [f"# {second} against {first}", ""]
    for split in ("validation", "test"):
        pairs = [[members[seed].get(split) for members in seeds] for seed in shared]
        if pairs and all(x is not None for pair in pairs for x in pair):
            lines.append(f"- {split}: {_paired(pairs)}")
    if all((path / FILE).exists() for path in (first, second)):
        lines += _over_examples(first, second, runs)
    if len(lines) == 2:
        raise UserError(
            f"{first} and {second} share no seed and hold no models: nothing to compare"
        )
    text = "\n".join(lines) + "\n"
    console.print(Text(text))
    if workdir:
        report.write_text(workdir / "comparison.md", text)
    return text


def _finished(workdir: Path) -> dict[str, Any]:
    try:
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        summary["members"], summary["config"]["data"]["dataset"]
        if summary["config"].get("prune", {}).get("run"):
            raise UserError(f"{workdir}: its members are pruned differently, and no seeds")
        return summary
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{workdir} holds no finished run: no summary.json of one") from None


def _paired(pairs: Sequence[Sequence[float]]) -> str:
    """'98.20 -> 98.50, +0.30 ± 0.12 over 5 seeds': the 95 % interval of the mean difference."""
    before, after = np.mean(pairs, axis=0)
    differences = [two - one for one, two in pairs]
    change, half = float(np.mean(differences)), stats.half_width(differences)
    text = f"{report.percent(before)} → {report.percent(after)} %, {100 * change:+.2f}"
    if half is None:
        return f"{text} of the one seed that both have, so no interval"
    verdict = "within the noise"
    if abs(change) > half:
        verdict = "better" if change > 0 else "worse"
    return f"{text} ± {100 * half:.2f} points (95 % interval, {len(pairs)} paired seeds): {verdict}"


def _over_examples(first: Path, second: Path, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """McNemar's test on every split that may be read, head by head."""
    devices.start(batches.cache_dir(ConfigDict(runs[0]["config"]["data"])))
    models_of = [Trained(path) for path in (first, second)]
    data = batches.load(models_of[0].config.data)
    splits = {"validation": data.validation}
    if all("test" in run for run in runs):
        splits["test"] = data.test
    lines = []
    for name, split in splits.items():
        if split is None:
            continue
        images, labels = batches.examples(split, data.recipe)
        said = [report.mean_probabilities(model.predict(images)) for model in models_of]
        for head, truth in labels.items():
            one, two = (p[head].argmax(-1) == truth for p in said)
            test = stats.mcnemar(one, two)
            lines.append(
                f"- {name}, {head}, over {len(truth):,} examples: only the first is right on "
                f"{test.first}, only the second on {test.second}; McNemar's p = {test.p:.3g}"
            )
    return lines

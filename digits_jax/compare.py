"""Several configs side by side: each is trained as a run of its own, then all are read together."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from digits_jax import figures, models, report, settings
from digits_jax.console import console
from digits_jax.data.pairs import RECIPES
from digits_jax.describe import layers
from digits_jax.errors import UserError, check_choice
from digits_jax.train import train

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

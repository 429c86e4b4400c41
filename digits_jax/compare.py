"""Several configs side by side: each is trained as a run of its own, then all are read together."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from digits_jax import figures, settings
from digits_jax.console import console
from digits_jax.errors import UserError
from digits_jax.train import train

_SIGMAS = 2  # standard errors that a difference must exceed to be called one


def compare(configs: Sequence[Any], workdir: Path) -> None:
    """Trains each of `configs` into the folder NAME beside `workdir`; compares them in `workdir`.

    A finished run is taken as it is. ablation.md and ablation.png hold a row per config, in the
    order given: parameters, accuracies, what changed since the row above, and how it fits.
    """
    summaries = {}
    for config in configs:
        train(config, workdir.parent / config.name)
        summaries[config.name] = _summary(workdir.parent / config.name)
    rows = ablation(summaries)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "ablation.md").write_text(markdown(rows), encoding="utf-8")
    figures.ablation(rows, workdir / "ablation.png")
    console.print(f"\n{markdown(rows)}\nablation.md and ablation.png stand in {workdir}")


def _summary(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if "validation" not in summary:
        raise UserError(f"{folder}: without validation (data.validation=0) it cannot be compared")
    return summary


def ablation(summaries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each {run: summary}: run, parameters, train, validation, test (None where it was
    not read), error (standard error of validation), changed and reading (texts).
    """
    rows: list[dict[str, Any]] = []
    best = max(summary["validation"]["accuracy"] for summary in summaries.values())
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


def reading(summary: dict[str, Any], best: float) -> str:
    """Does it over- or underfit?

    It underfits where it does worse on its own training examples than the best of the compared
    runs does on validation (`best`), and overfits where it does better on them than on validation,
    both by more than two standard errors.
    """
    train, validation = summary["train"]["accuracy"], summary["validation"]["accuracy"]
    noise = _SIGMAS * math.hypot(_error(summary, "train"), _error(summary, "validation"))
    gap = f"gap {100 * (train - validation):+.2f} ± {100 * noise:.2f}"
    if train < best - noise:
        return f"underfits: {100 * train:.2f} on training, {100 * best:.2f} is possible; {gap}"
    return f"overfits: {gap}" if train - validation > noise else f"fits: {gap}"


def _error(summary: dict[str, Any], split: str) -> float:
    """The standard error of an accuracy over n examples and the members that read them."""
    p, n = summary[split]["accuracy"], summary["data"][split] * len(summary["members"])
    return math.sqrt(max(p * (1 - p), 1 / n) / n)


def _progress(before: dict[str, Any], now: dict[str, Any]) -> str:
    change = now["validation"] - before["validation"]
    noise = _SIGMAS * math.hypot(before["error"], now["error"])
    size = f"validation {100 * change:+.2f} ± {100 * noise:.2f}"
    if abs(change) <= noise:
        return f"{size}, no difference to speak of"
    return f"{size}, {'better' if change > 0 else 'worse'} than {before['run']}"


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    texts = []
    for field, old, new in settings.changes(before, now):
        if isinstance(old, list) and isinstance(new, list):
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
            "–" if row[split] is None else f"{100 * row[split]:.2f}"
            for split in ("train", "validation", "test")
        )
        lines.append(
            f"| {row['run']} | {row['parameters']:,} | {train} | {validation} | {test} "
            f"| {row['changed']} | {row['reading']} |"
        )
    return "\n".join(lines) + "\n"

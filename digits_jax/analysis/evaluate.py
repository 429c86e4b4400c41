"""The predictions of a run for its test split or for a user's own images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.text import Text

from digits_jax.analysis.runs import open_run, writable
from digits_jax.console import console, percent, status
from digits_jax.data import dataset, pictures
from digits_jax.errors import UserError, check_choice
from digits_jax.report import artifacts, figures, stats

_MOST_LINES = 20  # of one kind


def evaluate(
    config: ConfigDict,
    workdir: str | Path,
    data: str | None,
    ink: str,
    out: str | Path | None = None,
    labels: str | None = None,
) -> None:
    """Writes predictions.csv into `workdir` or `out`: of the user's `data`, or of the test split.

    The probabilities of several members are averaged, then calibrated by the temperature that was
    fitted on the validation split. `config`: as in `open_run`; ink, labels: as in `pictures.read`.
    """
    check_labels(data, labels)
    trained = open_run(config, workdir)
    path = writable(workdir, out, "predictions.csv") / "predictions.csv"
    names, note = None, ""
    if data and trained.recipe.digits > 2:
        raise UserError("a run of numbers reads pictures with --mode=read")
    status("reading the images", brief=True)
    if data:
        images, truth, names, unread, notes = pictures.read(
            data, ink, trained.recipe, trained.own_classes, labels
        )
        for line in pictures.told(unread):
            console.print(f"not read: {line}")
        say(notes)
    else:
        loaded = dataset.load(trained.config.data)
        images, truth = dataset.examples(loaded.test, trained.recipe)
        note = artifacts.source_note(loaded.test_source)
    status("evaluating")
    log_p = trained.predict(images)
    calibrated = {
        head: np.log(stats.tempered(values, trained.temperature[-1]))
        for head, values in artifacts.averaged(log_p).items()
    }
    artifacts.write_predictions(path, calibrated, trained.classes, truth, names)
    answers = [_answer(calibrated, trained.classes, i) for i in range(len(images) if names else 0)]
    if len(answers) == 1 and names:
        sure = " ".join(f"{np.exp(p[0].max()):.0%}" for p in calibrated.values())
        console.print(f"{names[0]}  {answers[0]}  {sure.replace('%', ' %')}")
    if truth is not None and labels and names:
        one_hot = {head: np.eye(calibrated[head].shape[1])[y] for head, y in truth.items()}
        counts = np.flatnonzero(np.min([*truth.values()], axis=0) >= 0).tolist()
        say_score(
            [(names[i], answers[i], _answer(one_hot, trained.classes, i)) for i in counts],
            path.name,
        )
    elif truth is not None:
        accuracy = artifacts.headline(artifacts.test_metrics(truth, log_p, trained.classes))
        console.print(figures.noted(accuracy, note))
    count = f"{len(images):,} image{'s' if len(images) > 1 else ''}"
    numbers = sorted(set(trained.epochs))
    epochs = f"epoch{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    console.print(Text(f"{count} under the weights of {epochs}; {path}"))


def check_labels(data: str | None, labels: str | None) -> None:
    """Raises UserError for a --labels that says nothing."""
    if labels:
        check_choice("--labels", labels, pictures.LABELS)
        if not data:
            raise UserError("--labels says where the labels of --data are; add --data=FOLDER")


def _answer(scores: dict[str, np.ndarray], classes: dict[str, list[str]], i: int) -> str:
    """The classes of the i-th image with the largest of scores {head: [N, C]}, one of each head."""
    return " ".join(classes[head][values[i].argmax()] for head, values in scores.items())


def say(lines: Sequence[str]) -> None:
    """Prints the first of them, and how many more there are."""
    for line in lines[:_MOST_LINES]:
        console.print(line)
    if len(lines) > _MOST_LINES:
        console.print(f"and {len(lines) - _MOST_LINES:,} more")


def say_score(rows: Sequence[tuple[str, str, str]], table: str) -> None:
    """Prints how many of (picture, what was read, label) agree, and those that don't.

    table: the name of the file that has all of them.
    """
    if not rows:
        console.print("no picture has a label that counts")
        return
    wrong = [
        f"{name}: read {read or 'nothing'}, true {true}"
        for name, read, true in rows
        if read != true
    ]
    right = len(rows) - len(wrong)
    say(wrong)
    console.print(f"{right:,} of {len(rows):,} right, {percent(right / len(rows))}; {table}")

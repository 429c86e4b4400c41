"""The predictions of a run for its test split or for a user's own images."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.text import Text

from digits_jax.analysis.runs import open_run, writable
from digits_jax.console import console, status
from digits_jax.data import dataset, pictures
from digits_jax.report import artifacts, figures, stats


def evaluate(
    config: ConfigDict,
    workdir: str | Path,
    data: str | None,
    ink: str,
    out: str | Path | None = None,
) -> None:
    """Writes predictions.csv into `workdir` or `out`: of the user's `data`, or of the test split.

    The probabilities of several members are averaged, then calibrated by the temperature that was
    fitted on the validation split. `config`: as in `open_run`; ink: as in `pictures.read`.
    """
    trained = open_run(config, workdir)
    path = writable(workdir, out, "predictions.csv") / "predictions.csv"
    names, note = None, ""
    status("reading the images", brief=True)
    if data:
        images, labels, names, unread, notes = pictures.read(
            data, ink, trained.recipe, trained.own_classes
        )
        for line in pictures.told(unread):
            console.print(f"not read: {line}")
        for line in notes:
            console.print(f"{data}: {line}")
    else:
        loaded = dataset.load(trained.config.data)
        images, labels = dataset.examples(loaded.test, trained.recipe)
        note = artifacts.source_note(loaded.test_source)
    status("evaluating")
    log_p = trained.predict(images)
    calibrated = {
        head: np.log(stats.tempered(values, trained.temperature[-1]))
        for head, values in artifacts.averaged(log_p).items()
    }
    artifacts.write_predictions(path, calibrated, trained.classes, labels, names)
    if labels is not None:
        accuracy = artifacts.headline(artifacts.test_metrics(labels, log_p, trained.classes))
        console.print(figures.noted(accuracy, note))
    count = f"{len(images):,} image{'s' if len(images) > 1 else ''}"
    numbers = sorted(set(trained.epochs))
    epochs = f"epoch{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    console.print(Text(f"{count} under the weights of {epochs}; {path}"))

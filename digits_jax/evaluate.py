"""What a finished or half-finished run says of its test set, or of a user's own images."""

from pathlib import Path
from typing import Any

import numpy as np

from digits_jax import devices, report, stats, user_images
from digits_jax.console import console
from digits_jax.data import batches
from digits_jax.errors import UserError
from digits_jax.trained import Trained


def open_run(config: Any, workdir: Path) -> Trained:
    """The run of `config` that lies in `workdir`, its data in the folders of `config`.

    Of `config` only the name and the folders count: what was trained is recorded in the workdir.
    Raises UserError as `Trained` does, and where the run is another config's.
    """
    devices.start(batches.cache_dir(config.data))
    trained = Trained(workdir)
    if trained.config.name != config.name:
        raise UserError(f"{workdir} holds a run of {trained.config.name}, not of {config.name}")
    trained.config.data.update(raw_dir=config.data.raw_dir, cache_dir=config.data.cache_dir)
    return trained


def evaluate(config: Any, workdir: Path, data: str | None, ink: str) -> None:
    """Writes predictions.csv into `workdir`, of the test set or of the user's `data`.

    With several members the predictions are those of their averaged probabilities; what is written
    is calibrated by the temperature that fitted the validation split. `config` counts
    as it does in `open_run`.
    """
    trained = open_run(config, workdir)
    names = None
    if data:
        images, labels, names = user_images.read(data, ink, trained.recipe)
    else:
        test = batches.load(trained.config.data).test
        images, labels = batches.examples(test, trained.recipe)
    log_p = trained.predict(images)
    said = {
        head: np.log(stats.tempered(values, trained.temperature[-1]))
        for head, values in report.averaged(log_p).items()
    }
    path = workdir / "predictions.csv"
    report.write_predictions(path, said, labels, names)
    if labels is not None:
        console.print(report.headline(report.test_metrics(labels, log_p)))
    epochs = ", ".join(map(str, trained.epochs))
    console.print(f"{len(images):,} images under the weights of epoch {epochs}; {path}")

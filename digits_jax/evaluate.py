"""What a run says of its test set, or of a user's own images; afterwards, what each epoch said."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from digits_jax import devices, report, stats, user_images
from digits_jax.console import console
from digits_jax.data import batches
from digits_jax.errors import UserError
from digits_jax.trained import Trained, epoch_file


def open_run(config: Any, workdir: Path) -> Trained:
    """The run of `config` that lies in `workdir`, its data in the folders of `config`.

    Of `config` only the name and the folders count: what was trained is recorded in the workdir.
    Raises UserError as `Trained` does, and where the run is another config's.
    """
    devices.start(batches.cache_dir(config.data))
    trained = Trained(workdir)
    if trained.config.prune.run and trained.config.population.size > 1:
        raise UserError(
            f"{workdir} holds a network pruned to several fractions; prune it to one, for example "
            '--config.prune.fractions="(0.9,)", to use it'
        )
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


def best_test_epoch(config: Any, workdir: Path) -> None:
    """Adds `best_test_epoch` to summary.json: what the best epoch on the test split would have had.

    That is how the field often quotes a run; nothing is chosen by it. Reads the epochs that a
    finished run kept with `config.keep_epochs`; an early one wins a tie. Raises UserError where
    there are none, or where the run has not reported its test accuracy yet.
    """
    trained = open_run(config, workdir)
    path = workdir / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        honest = summary["mean"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{workdir}: no test accuracy is reported there yet; its epochs are compared afterwards"
        ) from None
    rows = report.read_rows(workdir / "metrics.jsonl")
    test = batches.load(trained.config.data).test
    images, labels = batches.examples(test, trained.recipe)
    best: dict[int, dict[str, Any]] = {}  # a member that diverged at once has no epoch
    for epoch in sorted({row["epoch"] for row in rows}):
        kept = epoch_file(workdir, epoch)
        if not kept.exists():
            raise UserError(f"{kept} is missing: it takes a run with --config.keep_epochs=True")
        trained.read(kept)
        figures = report.test_metrics(labels, trained.predict(images))["members"]
        for member in (row["member"] for row in rows if row["epoch"] == epoch):
            if member not in best or figures[member]["test"] > best[member]["test"]:
                seed = summary["members"][member]["seed"]
                best[member] = {"seed": seed, "epoch": epoch, **figures[member]}
    members = [best[member] for member in sorted(best)]
    summary["best_test_epoch"] = flattered = stats.spread([b["test"] for b in members])
    flattered["members"] = members
    report.write_json(path, summary)
    console.print(
        f"best test epoch {report.percent(flattered['mean'], flattered['std'])} %, honestly "
        f"{report.percent(honest)} %: flattered by {report.percent(flattered['mean'] - honest)}"
    )

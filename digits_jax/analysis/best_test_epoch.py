"""What choosing the epoch on the test split would add to the accuracy of a run."""

from pathlib import Path

from ml_collections import ConfigDict

from digits_jax.analysis.runs import Addition, open_run
from digits_jax.console import console, percent, track
from digits_jax.data import dataset
from digits_jax.errors import UserError
from digits_jax.report import artifacts, stats
from digits_jax.training.predictor import epoch_file


def best_test_epoch(config: ConfigDict, workdir: str | Path, out: str | Path | None = None) -> None:
    """Adds `best_test_epoch` to summary.json: each member's accuracy at its best epoch on test.

    Often quoted in the literature; nothing is chosen by it here. Of equal epochs, the earliest.
    `config`: as in `open_run`; out: as in `Addition`. Raises UserError as they do, and where the
    run did not keep its epochs (`config.keep_epochs`).
    """
    workdir = Path(workdir)
    trained = open_run(config, workdir)
    addition = Addition(workdir, out, "its epochs are compared")
    rows = artifacts.read_rows(workdir / "metrics.jsonl")
    test = dataset.load(trained.config.data).test
    images, labels = dataset.examples(test, trained.recipe)
    best: dict[int, artifacts.Row] = {}  # a member that diverged at once has no epoch
    for epoch in track(sorted({row["epoch"] for row in rows}), "evaluating epochs"):
        kept = epoch_file(workdir, epoch)
        if not kept.exists():
            raise UserError(f"{kept} is missing: it takes a run with --config.keep_epochs=True")
        trained.read(kept)
        tested = artifacts.test_metrics(labels, trained.predict(images), trained.classes)["members"]
        for member in {row["member"] for row in rows if row["epoch"] == epoch}:
            if member not in best or tested[member]["test"] > best[member]["test"]:
                seed = addition.summary["members"][member]["seed"]
                best[member] = {"seed": seed, "epoch": epoch, **tested[member]}
    members = [best[member] for member in sorted(best)]
    found = stats.spread([member["test"] for member in members]) | {"members": members}
    addition.write("best_test_epoch", found)
    reported, mean = addition.summary["mean"], found["mean"]
    console.print(
        f"best test epoch {percent(mean, found['std'], seeds=len(members))}, honestly "
        f"{percent(reported)}: flattered by {percent(mean - reported, unit='')}"
    )

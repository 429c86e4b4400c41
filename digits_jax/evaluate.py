"""What a run says of its test set or of a user's own images; afterwards, of more pairs, or what
each epoch said.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from digits_jax import devices, report, stats, user_images
from digits_jax.console import console
from digits_jax.data import batches
from digits_jax.data.pairs import draw_pairs, generator
from digits_jax.errors import UserError
from digits_jax.trained import Trained, epoch_file

DRAWS = 25  # of pairs, each as many as the test split has


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
        images, labels, names, unread, notes = user_images.read(data, ink, trained.recipe)
        for line in (f"not read: {line}" for line in user_images.told(unread)):
            console.print(line, markup=False)
        for note in notes:
            console.print(f"{data}: {note}", markup=False)
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


def reported(workdir: Path, later: str, split: str = "test") -> dict[str, Any]:
    """summary.json of a run that has reported its accuracy on `split`; else a UserError, which says
    what comes `later`.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        if summary.get(split):
            return summary
    raise UserError(f"{workdir}: no {split} accuracy is reported there yet; {later} afterwards")


def best_test_epoch(config: Any, workdir: Path) -> None:
    """Adds `best_test_epoch` to summary.json: what the best epoch on the test split would have had.

    That is how the field often quotes a run; nothing is chosen by it. Reads the epochs that a
    finished run kept with `config.keep_epochs`; an early one wins a tie. Raises UserError where
    there are none, or where the run has not reported its test accuracy yet.
    """
    trained = open_run(config, workdir)
    summary = reported(workdir, "its epochs are compared")
    honest = summary["mean"]
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
    report.write_json(workdir / "summary.json", summary)
    console.print(
        f"best test epoch {report.percent(flattered['mean'], flattered['std'])} %, honestly "
        f"{report.percent(honest)} %: flattered by {report.percent(flattered['mean'] - honest)}"
    )


def more_pairs(config: Any, workdir: Path) -> None:
    """Adds `pairs` to summary.json: the accuracy of many more pairs of the test's digits.

    A test split of 4,000 pairs is one draw of 100 million, and its luck is larger than the spread
    of the seeds; DRAWS further ones, of the stream "more" of `data.seed`, tell the two apart. Where
    `report_test` is off, they are pairs of the validation's digits. `config` counts as it does in
    `open_run`. Writes `split`, `draws`, `examples`, `mean`, `std`, `interval`, `heads`, `all_heads`
    and `ensemble`, as summary.json has them of the test split, and `draw_std`, the standard
    deviation of a single draw's mean. Raises UserError where examples are single digits, of folds,
    where no digits are held out, or where the run has not reported its accuracy yet.
    """
    trained = open_run(config, workdir)
    data = trained.config.data
    if trained.recipe.digits == 1:
        raise UserError(
            f"--mode=pairs is for pairs of digits; {data.dataset} tests every digit once"
        )
    name = "test" if trained.config.report_test else "validation"
    if data.folds:
        raise UserError("--mode=pairs goes without data.folds, whose members share digits")
    if name == "validation" and not data.validation:
        raise UserError(
            "--mode=pairs of a run with report_test=False needs validation digits: train with "
            "--config.data.validation=0.1"
        )
    summary = reported(workdir, "more pairs are drawn", name)
    split = getattr(batches.load(data), name)
    rng, pool = generator(data.seed, "more"), np.asarray(split.pool)
    draws = []
    for _ in track(
        range(DRAWS), "pairs", console=console, transient=True, disable=not console.is_terminal
    ):
        rows = pool[draw_pairs(rng, split.size, len(pool), trained.recipe.digits)]
        images, labels = batches.examples(split._replace(rows=rows), trained.recipe)
        draws.append(report.test_metrics(labels, trained.predict(images)))
    accuracy = np.mean([[member["test"] for member in draw["members"]] for draw in draws], axis=0)
    tests = [draw["test"] for draw in draws]
    summary["pairs"] = found = {
        "split": name,
        "draws": DRAWS,
        "examples": DRAWS * split.size,
        **stats.spread(accuracy),
        "heads": {head: np.mean([t["heads"][head] for t in tests]) for head in tests[0]["heads"]},
        "all_heads": np.mean([t["all_heads"] for t in tests]),
        "draw_std": np.std([t["accuracy"] for t in tests], ddof=1),
    }
    if len(accuracy) > 1:
        found["ensemble"] = np.mean([draw["ensemble"] for draw in draws])
    report.write_json(workdir / "summary.json", summary)
    console.print(
        f"{found['examples']:,} pairs of {name} digits: "
        f"{report.percent(found['mean'], found['std'])} %, where the split's {split.size:,} said "
        f"{report.percent(summary[name]['accuracy'])} % (a draw has ± "
        f"{report.percent(found['draw_std'])} by luck)"
    )

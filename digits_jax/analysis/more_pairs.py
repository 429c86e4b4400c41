"""The accuracy of a run on many more pairs of digits than its test split holds."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from digits_jax.analysis.runs import Addition, open_run
from digits_jax.console import console, percent, track
from digits_jax.data import dataset
from digits_jax.data.recipes import draw_pairs, generator
from digits_jax.errors import UserError
from digits_jax.report import artifacts, stats

DRAWS = 25  # of pairs, each as many as the test split has


def more_pairs(config: ConfigDict, workdir: str | Path, out: str | Path | None = None) -> None:
    """Adds `pairs` to summary.json: the accuracy over DRAWS more draws of pairs of test digits.

    The accuracy of a run varies more from one draw of pairs to the next than from seed to seed.
    With `report_test` off, pairs of validation digits. Keys: `split`, `draws`, `examples`, those of
    summary.json for a test split, and `draw_std`, the standard deviation of one draw's mean.
    `config`: as in `open_run`; out: as in `Addition`. Raises UserError as they do, for single
    digits, for folds, and where no digits are held out.
    """
    trained = open_run(config, workdir)
    data, name = trained.config.data, "test" if trained.config.report_test else "validation"
    if trained.recipe.digits != 2:
        raise UserError(
            f"--mode=more-pairs is for pairs of digits; {data.dataset} tests every digit once"
        )
    if data.folds:
        raise UserError("--mode=more-pairs goes without data.folds, whose members share digits")
    if name == "validation" and not data.validation:
        raise UserError(
            "--mode=more-pairs of a run with report_test=False needs validation digits: train with "
            "--config.data.validation=0.1"
        )
    addition = Addition(workdir, out, "more pairs are drawn", name)
    split = getattr(dataset.load(data), name)
    rng, pool = generator(data.seed, "more"), np.asarray(split.pool)
    draws = []
    for _ in track(range(DRAWS), "evaluating draws of pairs"):
        rows = pool[draw_pairs(rng, split.size, len(pool), trained.recipe.digits)]
        images, labels = dataset.examples(split._replace(rows=rows), trained.recipe)
        draws.append(artifacts.test_metrics(labels, trained.predict(images), trained.classes))
    accuracy = np.mean([[member["test"] for member in draw["members"]] for draw in draws], axis=0)
    means = stats.means([draw["test"] for draw in draws])
    found = {
        "split": name,
        "draws": DRAWS,
        "examples": DRAWS * split.size,
        **stats.spread(accuracy),
        "heads": means["heads"],
        "all_heads": means["all_heads"],
        "draw_std": np.std([draw["test"]["accuracy"] for draw in draws], ddof=1),
    }
    if len(accuracy) > 1:
        found["ensemble"] = np.mean([draw["ensemble"] for draw in draws])
    addition.write("pairs", found)
    console.print(
        f"{found['examples']:,} pairs of {name} digits: "
        f"{percent(found['mean'], found['std'], seeds=len(accuracy))}; on the split's "
        f"{split.size:,} it was {percent(addition.summary[name]['accuracy'])} (one draw varies by "
        f"± {percent(found['draw_std'], unit='')})"
    )

"""Accuracy on corrupted test digits, by corruption and level.

In the manner of MNIST-C (Mu and Gilmer 2019, arXiv:1906.02337), with other corruptions, made with
SciPy. Digits are corrupted before they are composed into pairs.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text
from scipy import ndimage

from digits_jax.analysis.runs import Addition, open_run
from digits_jax.console import console, status, track
from digits_jax.data import dataset
from digits_jax.data.batches import to_float
from digits_jax.report import artifacts, figures, tables

_FINE = 4  # each pixel becomes 4x4 finer ones, in which strokes grow and shrink
Results = dict[str, dict[str, dict[str, float]]]  # {corruption: {level: {"mean", "std", ...}}}


class Corruption(NamedTuple):
    """`of(rng, images, level)` corrupts images, [N, 28, 28] float32 in [0, 1], ink bright.

    `level` is in `unit`.
    """

    unit: str
    levels: tuple[float, ...]
    of: Callable[[np.random.Generator, np.ndarray, float], np.ndarray]


def _shift(rng: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """By whole pixels along rows, columns or both, in one of eight directions."""
    directions = [d for d in itertools.product((-1, 0, 1), repeat=2) if any(d)]
    which = rng.integers(0, len(directions), len(images))
    shifted = np.empty_like(images)
    for i, (dy, dx) in enumerate(directions):
        shift = (0, dy * level, dx * level)
        shifted[which == i] = ndimage.shift(images[which == i], shift, order=0)
    return shifted


def _rotate(rng: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """About the centre, to either side."""
    rotated = np.empty_like(images)
    left = rng.random(len(images)) < 0.5
    for mask, angle in ((left, level), (~left, -level)):
        rotated[mask] = ndimage.rotate(images[mask], angle, (1, 2), reshape=False, order=1)
    return rotated


def _noise(rng: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """Gaussian, with a standard deviation of `level`; white is 1."""
    return images + level * rng.standard_normal(images.shape, np.float32)


def _blur(_: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """Gaussian, with a standard deviation of `level`."""
    return ndimage.gaussian_filter(images, (0, level, level))


def _stroke(
    extreme: Callable[..., np.ndarray], _: np.random.Generator, images: np.ndarray, level: float
) -> np.ndarray:
    """Strokes `level` thicker (`maximum_filter`) or thinner (`minimum_filter`)."""
    size = round(level * _FINE) + 1
    parts = []
    for start in range(0, len(images), 500):  # a fine image takes 50 kB
        fine = images[start : start + 500].repeat(_FINE, axis=1).repeat(_FINE, axis=2)
        fine = extreme(fine, (1, size, size))
        n, height, width = fine.shape
        fine = fine.reshape(n, height // _FINE, _FINE, width // _FINE, _FINE)
        parts.append(fine.mean(axis=(2, 4)))
    return np.concatenate(parts)


CORRUPTIONS = {
    "shift": Corruption("px", (1, 2, 3, 4), _shift),
    "rotation": Corruption("degrees", (5, 10, 15, 20), _rotate),
    "noise": Corruption("of white", (0.1, 0.2, 0.3, 0.4), _noise),
    "blur": Corruption("px", (0.5, 1.0, 1.5, 2.0), _blur),
    "thick": Corruption("px", (0.5, 1.0, 1.5, 2.0), partial(_stroke, ndimage.maximum_filter)),
    "thin": Corruption("px", (0.5, 1.0, 1.5, 2.0), partial(_stroke, ndimage.minimum_filter)),
}


def corrupt(images: np.ndarray, name: str, level: float) -> np.ndarray:
    """images: [N, 28, 28] uint8, ink bright -> the same, corrupted; the same at every call."""
    rng = np.random.default_rng(0)
    corrupted = CORRUPTIONS[name].of(rng, np.asarray(to_float(images, np.float32)), level)
    return np.rint(255 * np.clip(corrupted, 0, 1)).astype(np.uint8)


def robustness(config: ConfigDict, workdir: str | Path, out: str | Path | None = None) -> None:
    """Adds `robustness` to summary.json, as `Results`, and draws robustness.png.

    `config`: as in `open_run`; out: as in `Addition`. Raises UserError as both do.
    """
    trained = open_run(config, workdir)
    addition = Addition(workdir, out, "damaged digits come", names=("robustness.png",))
    summary, picture = addition.summary, addition.folder / "robustness.png"
    clean = {"mean": summary["mean"], "std": summary["std"]}
    test = dataset.load(trained.config.data).test
    digits = np.asarray(test.images)
    results: Results = {name: {} for name in CORRUPTIONS}
    shown: dict[str, list[np.ndarray]] = {name: [] for name in CORRUPTIONS}
    cases = [(name, level) for name, kind in CORRUPTIONS.items() for level in kind.levels]
    for name, level in track(cases, "evaluating damaged digits"):
        split = test._replace(images=corrupt(digits, name, level))
        images, labels = dataset.examples(split, trained.recipe)
        tested = artifacts.test_metrics(labels, trained.predict(images), trained.classes)
        kept = ("mean", "std", "ensemble")
        results[name][f"{level:g}"] = {key: tested[key] for key in kept if key in tested}
        shown[name].append(images[0])
    addition.write("robustness", results)
    status("drawing the picture", brief=True)
    note = artifacts.source_note(summary["data"]["test_source"])
    titled = {f"{name}, {CORRUPTIONS[name].unit}": images for name, images in shown.items()}
    figures.robustness(results, clean, titled, picture, note)
    console.print(_table(results))
    console.print(Text(f"{tables.percent(clean['mean'])} % of the undamaged digits; {picture}"))


def _table(results: Results) -> Table:
    table = Table(box=SIMPLE, title="Accuracy, %, the more the digits are damaged")
    for column in ("corruption", "levels", "", "", "", ""):
        table.add_column(column, justify="left" if column else "right", no_wrap=True)
    for name, levels in results.items():
        span = f"{', '.join(levels)} {CORRUPTIONS[name].unit}"
        table.add_row(name, span, *(tables.percent(x["mean"]) for x in levels.values()))
    return table

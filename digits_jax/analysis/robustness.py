"""How accuracy falls where test digits are damaged more and more.

In the manner of MNIST-C (Mu and Gilmer 2019, arXiv:1906.02337), by corruptions of our own: SciPy's,
not those of `augment`. They damage each digit before an image is composed of two.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.box import SIMPLE
from rich.progress import track
from rich.table import Table
from rich.text import Text
from scipy import ndimage

from digits_jax.analysis.runs import Addition, open_run
from digits_jax.console import console
from digits_jax.data import batches
from digits_jax.report import figures
from digits_jax.report import summary as report

_FINE = 4  # pixels of the image in which strokes grow, to one


class Corruption(NamedTuple):
    """`of(rng, images, level)` damages images, [N, 28, 28] float32 in [0, 1], bright on dark."""

    unit: str
    levels: tuple[float, ...]
    of: Callable[[np.random.Generator, np.ndarray, float], np.ndarray]


def _shift(rng: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """Whole pixels along rows, columns or both, in one of eight directions."""
    reach = int(level)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    which = rng.integers(0, len(steps), len(images))
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)))
    shifted = np.empty_like(images)
    height, width = images.shape[1:]
    for i, (dy, dx) in enumerate(steps):
        top, left = reach - reach * dy, reach - reach * dx
        shifted[which == i] = padded[which == i, top : top + height, left : left + width]
    return shifted


def _rotate(rng: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """Degrees about the centre, either way."""
    turned = np.empty_like(images)
    left = rng.random(len(images)) < 0.5
    for mask, angle in ((left, level), (~left, -level)):
        turned[mask] = ndimage.rotate(images[mask], angle, (1, 2), reshape=False, order=1)
    return turned


def _noise(rng: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """Gaussian, of that standard deviation; white is 1."""
    return images + level * rng.standard_normal(images.shape, np.float32)


def _blur(_: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """Gaussian, of that standard deviation in pixels."""
    return ndimage.gaussian_filter(images, (0, level, level))


def _thick(_: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """Strokes that many pixels thicker."""
    return _grown(images, level, ndimage.maximum_filter)


def _thin(_: np.random.Generator, images: np.ndarray, level: float) -> np.ndarray:
    """Strokes that many pixels thinner."""
    return _grown(images, level, ndimage.minimum_filter)


def _grown(images: np.ndarray, level: float, extreme: Callable[..., np.ndarray]) -> np.ndarray:
    """The largest or smallest within level / 2, where each pixel is a square of 4x4 finer ones."""
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
    "thick": Corruption("px", (0.5, 1.0, 1.5, 2.0), _thick),
    "thin": Corruption("px", (0.5, 1.0, 1.5, 2.0), _thin),
}


def corrupt(images: np.ndarray, name: str, level: float) -> np.ndarray:
    """images: [N, 28, 28] uint8, ink bright on dark -> the same, damaged; always the same way."""
    rng = np.random.default_rng(0)
    damaged = CORRUPTIONS[name].of(rng, images.astype(np.float32) / 255, level)
    return np.rint(255 * np.clip(damaged, 0, 1)).astype(np.uint8)


def robustness(config: ConfigDict, workdir: str | Path, out: str | Path | None = None) -> None:
    """Adds `robustness` to summary.json, {corruption: {level: {"mean", "std", ...}}}, and draws it.

    Of a finished run's test digits; `config` counts as it does in `open_run`, `out` as in
    `Addition`. Raises UserError where the run has not reported its test accuracy yet.
    """
    trained = open_run(config, workdir)
    addition = Addition(workdir, out, "damaged digits come", names=("robustness.png",))
    summary, picture = addition.summary, addition.folder / "robustness.png"
    clean = {"mean": summary["mean"], "std": summary["std"]}
    test = batches.load(trained.config.data).test
    digits = np.asarray(test.images)
    found: dict[str, dict[str, Any]] = {name: {} for name in CORRUPTIONS}
    titles = {name: f"{name}, {kind.unit}" for name, kind in CORRUPTIONS.items()}
    shown: dict[str, list[np.ndarray]] = {title: [] for title in titles.values()}
    cases = [(name, level) for name, kind in CORRUPTIONS.items() for level in kind.levels]
    for name, level in track(
        cases, "damaged digits", console=console, transient=True, disable=not console.is_terminal
    ):
        split = test._replace(images=corrupt(digits, name, level))
        images, labels = batches.examples(split, trained.recipe)
        tested = report.test_metrics(labels, trained.predict(images))
        kept = ("mean", "std", "ensemble")
        found[name][f"{level:g}"] = {key: tested[key] for key in kept if key in tested}
        shown[titles[name]].append(images[0])
    addition.write("robustness", found)
    note = report.drawn(addition.summary["data"]["test_source"])
    figures.robustness(found, clean, shown, picture, note)
    console.print(_table(found))
    console.print(Text(f"{report.percent(clean['mean'])} % of the digits as they are; {picture}"))


def _table(found: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE, title="Accuracy, %, the more the digits are damaged")
    for column in ("corruption", "levels", "", "", "", ""):
        table.add_column(column, justify="left" if column else "right", no_wrap=True)
    for name, levels in found.items():
        span = f"{', '.join(levels)} {CORRUPTIONS[name].unit}"
        table.add_row(name, span, *(report.percent(x["mean"]) for x in levels.values()))
    return table

"""Reads what is written in a picture: its ink in pieces, and what a network says to each."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from digits_jax import defaults
from digits_jax.data import ink, pictures
from digits_jax.data.ink import Piece
from digits_jax.errors import UserError, check_choice
from digits_jax.report import artifacts, stats
from digits_jax.training.predictor import FILE, UNMEASURED, Predictor

MOST_PIECES = 300  # of a picture; further ones are not read
SHIPPED = "demo"  # of the results: the reader that comes with the package
REFUSED = "?"
REFUSALS = 0.004  # of the single digits of validation
_BATCH = 16


class Digit(NamedTuple):
    """One character that was read.

    probability: calibrated; box: left, top, right, bottom in px of the upright picture; image:
    [28, W] uint8, bright ink on dark, as the network saw it.
    """

    character: str
    probability: float
    box: tuple[int, int, int, int]
    image: np.ndarray


class Reading(NamedTuple):
    """What is written in a picture.

    text: its lines, joined by newlines, "" where there is no ink; digits: in reading order;
    left_out: how many pieces of ink there are beyond MOST_PIECES.
    """

    text: str
    digits: list[Digit]
    left_out: int = 0

    def __str__(self) -> str:
        return self.text


class Reader:
    """Reads with a trained run, of numbers or of single digits.

    A piece of ink whose probability of being digits is below the run's `threshold` is read as `?`.
    Raises UserError for a run of anything else.
    """

    def __init__(self, predictor: Predictor):
        config, recipe = predictor.config, predictor.recipe
        self._cut = recipe.shape[1]  # columns of a piece that the network sees
        if recipe.digits != 1 and config.data.dataset != "number":
            raise UserError(
                f"a run of {config.name} reads {recipe.digits} digits at once, so it can't read "
                "numbers of any length; take a run of single digits, or of --config=demo"
            )
        self._predictor = predictor
        names = next(iter(predictor.classes.values()))
        self.characters = tuple(name for name in names if name != REFUSED)

    def read(self, lines: Sequence[Sequence[Piece]]) -> Reading:
        """What `ink.find` found."""
        count = sum(map(len, lines))
        pieces = [piece for line in lines for piece in line][:MOST_PIECES]
        if not pieces:
            return Reading("", [])
        images = np.stack([_middle(piece.image, self._cut) for piece in pieces])
        run = self._predictor
        log_p = artifacts.averaged(run.predict(images, _BATCH))
        read = [
            [
                Digit(character, p, box, image)
                for (character, p), box in zip(said, _parts(piece.box, len(said)), strict=True)
            ]
            for said, piece, image in zip(
                symbols(log_p, run.temperature[-1], run.classes, run.threshold),
                pieces,
                images,
                strict=True,
            )
        ]
        rest = iter(read)
        texts = []
        for line in lines:
            found = [digit for _, piece in zip(line, rest, strict=False) for digit in piece]
            texts.append("".join(digit.character for digit in found))
        digits = [digit for piece in read for digit in piece]
        return Reading("\n".join(filter(None, texts)), digits, count - len(read))

    def picture(self, picture: Any, ink_is: str = "auto") -> Reading:
        """What is written in a picture: all that `pictures.opened` takes, or what it made of it.

        ink_is: 'auto', 'bright' or 'dark'.
        """
        check_choice("ink", ink_is, pictures.INKS)
        if not isinstance(picture, pictures.Opened):
            picture = pictures.opened(picture)
        reading = self.read(ink.find(picture.pixels, ink_is))
        height, width = picture.pixels.shape[:2]
        scale = np.asarray([picture.size[0] / width, picture.size[1] / height] * 2)
        digits = [
            digit._replace(box=tuple(np.rint(scale * digit.box).astype(int).tolist()))
            for digit in reading.digits
        ]
        return reading._replace(digits=digits)


def shipped() -> Path:
    """The weights of the reader that comes with the package."""
    return defaults.shipped("results") / SHIPPED / FILE


def symbols(
    log_p: Mapping[str, np.ndarray],
    temperature: float,
    classes: Mapping[str, Sequence[str]],
    threshold: float = 0.0,
) -> list[list[tuple[str, float]]]:
    """What the heads say of N pieces of ink: [(symbol, its calibrated probability), ...] for each.

    log_p: {head: [N, C]}; classes: {head: names}, '' where there is no further symbol. These are
    the likeliest digits, `?` left out. Where the probability p that all are digits is below
    `threshold`, the piece is [('?', 1 - p)].
    """
    read = []
    for said, p in _digits(log_p, temperature, classes):
        read.append([(REFUSED, 1 - p)] if p < threshold else said)
    return read


def _digits(
    log_p: Mapping[str, np.ndarray], temperature: float, classes: Mapping[str, Sequence[str]]
) -> Iterator[tuple[list[tuple[str, float]], float]]:
    """For each piece its likeliest digits with their probabilities, and that none is a `?`."""
    heads = [stats.tempered(log_p[head], temperature) for head in classes]
    for answers in zip(*heads, strict=True):
        said, p = list[tuple[str, float]](), 1.0
        for each, names in zip(answers, classes.values(), strict=True):
            strange = np.asarray(names) == REFUSED
            best = int(np.where(strange, 0, each).argmax())
            if not names[best]:
                break
            said.append((names[best], float(each[best])))
            p *= 1 - float(each[strange].sum())
        yield said, p


def threshold(
    labels: Mapping[str, np.ndarray],
    log_p: Mapping[str, np.ndarray],
    temperature: float,
    classes: Mapping[str, Sequence[str]],
) -> float:
    """Below which probability of being digits a piece is read as `?`: the quantile REFUSALS of that
    probability over validation's single digits.

    labels: {head: [N]}; log_p: {head: [N, C]}.
    """
    truth = {head: np.asarray(names)[labels[head]] for head, names in classes.items()}
    first, second, *_ = truth.values()
    single = np.flatnonzero((first != REFUSED) & (second == ""))
    read = _digits({h: x[single] for h, x in log_p.items()}, temperature, classes)
    sure = np.sort([p for _, p in read])
    return float(sure[int(REFUSALS * len(sure))]) if len(sure) else UNMEASURED


def _middle(image: np.ndarray, width: int) -> np.ndarray:
    left = (image.shape[1] - width) // 2
    if left < 0:
        return np.pad(image, ((0, 0), (-left, width - image.shape[1] + left)))
    return image[:, left : left + width]


def _parts(box: tuple[int, int, int, int], n: int) -> list[tuple[int, int, int, int]]:
    """`box` in `n` parts of the same width: where in it a digit lies is not known."""
    left, top, right, bottom = box
    edges = np.rint(np.linspace(left, right, n + 1)).astype(int).tolist()
    return [(a, top, b, bottom) for a, b in pairwise(edges)]

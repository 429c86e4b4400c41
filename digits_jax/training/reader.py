"""Reads what is written in a picture: its ink in pieces, and what a network says to each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from digits_jax import defaults
from digits_jax.data import ink, pictures
from digits_jax.data.ink import Piece
from digits_jax.errors import UserError, check_choice
from digits_jax.report import artifacts, stats
from digits_jax.training.predictor import FILE, Predictor

MOST_PIECES = 300  # of a picture; further ones are not read
SHIPPED = "demo"  # of the results: the reader that comes with the package
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
    """Reads with a trained run. Raises UserError for a run that doesn't read single images."""

    def __init__(self, predictor: Predictor):
        recipe = predictor.recipe
        if recipe.digits != 1:
            raise UserError(
                f"a run of {predictor.config.name} reads {recipe.digits} digits at once, so it "
                "can't read numbers of any length; take a run of single digits"
            )
        self._predictor = predictor
        ((self._head, classes),) = predictor.classes.items()
        self.characters = tuple(classes)

    def read(self, lines: Sequence[Sequence[Piece]]) -> Reading:
        """What `ink.find` found, each piece as one digit."""
        count = sum(map(len, lines))
        pieces = [piece for line in lines for piece in line][:MOST_PIECES]
        if not pieces:
            return Reading("", [])
        images = np.stack([_middle(piece.image) for piece in pieces])
        log_p = artifacts.averaged(self._predictor.predict(images, _BATCH))[self._head]
        p = stats.tempered(log_p, self._predictor.temperature[-1])
        digits = [
            Digit(self.characters[each.argmax()], float(each.max()), piece.box, image)
            for each, piece, image in zip(p, pieces, images, strict=True)
        ]
        said = iter(digits)
        texts = ["".join(d.character for _, d in zip(line, said, strict=False)) for line in lines]
        return Reading("\n".join(filter(None, texts)), digits, count - len(digits))

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


def _middle(image: np.ndarray) -> np.ndarray:
    left = (image.shape[1] - 28) // 2
    return image[:, left : left + 28]

"""How well digits are found and read in photographs that a program makes.

python -m reliability.exam [--split=development] [--count=200] [--seed=0] [--raw_dir=FOLDER]
    [--kinds=clean,blur] [--pictures=FOLDER]

Development photographs are of MNIST's validation digits and of the kinds in
photographs.DEVELOPMENT. Those of the exam are of MNIST's test digits and of digits drawn by a
program, and of all kinds: the exam is taken once. With `--pictures` they are written as PNG files,
named after their digits, and nothing is read.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

import digits_jax
from digits_jax.console import console, percent
from digits_jax.data import dataset, drawn, ink, recipes, sources
from digits_jax.types import Digits
from reliability import photographs

SPLITS = {"development": photographs.DEVELOPMENT, "exam": photographs.KINDS}
DRAWN_SEED = 1_000_003  # no run trains on these

_SPLIT = flags.DEFINE_enum("split", "development", list(SPLITS), "Of which digits and kinds.")
_COUNT = flags.DEFINE_integer("count", 200, "Photographs of each kind and layout.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the photographs.")
_RAW_DIR = flags.DEFINE_string("raw_dir", "", "MNIST's files; '' for the cache, or a download.")
_KINDS = flags.DEFINE_list("kinds", [], "Only these kinds; by default all of the split.")
_PICTURES = flags.DEFINE_string("pictures", "", "A folder: only write the photographs there.")


def digits(split: str, mnist: tuple[Digits, Digits], n_drawn: int = 10_000) -> Digits:
    """The digits of which a split's photographs are made; mnist: its training and test digits."""
    train, test = mnist
    if split == "exam":
        more = drawn.digits(DRAWN_SEED, n_drawn)
        return Digits(*map(np.concatenate, zip(test, more, strict=True)))
    rng = recipes.generator(0, "split")  # as runs of seed 0 hold them out
    _, held_out = recipes.split_digits(rng, len(train.labels), 0.1)
    return Digits(train.images[held_out], train.labels[held_out])


def taken(
    source: Digits, split: str, kind: str, layout: str, count: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, str]]:
    """`count` photographs [h, w, 3] uint8 and their digits; each depends on the seed and its place.

    A kind's photographs are the same whichever other kinds are asked for.
    """
    place = [list(SPLITS).index(split), list(photographs.KINDS).index(kind)]
    place.append(photographs.LAYOUTS.index(layout))
    for i in range(count):
        rng = np.random.default_rng([seed, *place, i])
        yield photographs.picture(
            rng, kind, np.asarray(source.images), np.asarray(source.labels), layout
        )


def measured(photos: Iterator[tuple[np.ndarray, str]], layout: str) -> dict[str, str]:
    """How many have as many pieces as digits, or lines where they touch, and how many are read."""
    found = total = 0
    images, labels = [], []
    for photo, text in photos:
        lines, rows = ink.find(photo), text.split("\n")
        total += 1
        if layout == "touching":
            found += len(lines) == len(rows)
        elif [len(line) for line in lines] == [len(row) for row in rows]:
            found += 1
            for piece in (piece for line in lines for piece in line):
                left = (piece.image.shape[1] - 28) // 2
                images.append(piece.image[:, left : left + 28])
            labels += [int(label) for row in rows for label in row]
    row = {"found": percent(found / total)}
    if images:
        answers = digits_jax.load().predict(np.stack(images)).labels["digit"]
        right = float(np.mean(answers == np.array(labels)))
        row["digits read of these"] = percent(right)
    return row


def main(_: list[str]) -> None:
    split = _SPLIT.value
    cache = dataset.cache_dir(digits_jax.get_base("exam").data)
    source = digits(split, sources.load(_RAW_DIR.value, cache))
    for kind in _KINDS.value or SPLITS[split]:
        for layout in photographs.LAYOUTS:
            photos = taken(source, split, kind, layout, _COUNT.value, _SEED.value)
            if not _PICTURES.value:
                console.print(f"{kind}, {layout}: {measured(photos, layout)}")
                continue
            folder = Path(_PICTURES.value) / kind / layout
            folder.mkdir(parents=True, exist_ok=True)
            for i, (photo, text) in enumerate(photos):
                name = text.replace("\n", "-")
                Image.fromarray(photo).save(folder / f"{i}_{name}.png")


if __name__ == "__main__":
    app.run(main)
